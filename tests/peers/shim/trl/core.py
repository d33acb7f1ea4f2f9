"""What of TRL's module the suites import."""

from typing import Any

import torch


def respond_to_batch(model: Any, queries: torch.Tensor, txt_len: int = 20) -> torch.Tensor:
    """Sampled answers of `txt_len` tokens, which the suites make their rows of. Shape (n, txt_len)."""
    ids = queries
    for _ in range(txt_len):
        logits = model(ids)[0][:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return ids[:, -txt_len:]
