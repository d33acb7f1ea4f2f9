"""Log-probability of completions under an encoder-decoder: one half reads the prompt, the other one answers."""

from typing import Any

import torch
from torch import Tensor, nn

from stages.models.logprobs import CompletionLogps, collision_entropies_of, entropies_of


def seq2seq_logps(
    model: nn.Module,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoder_input_ids: Tensor,
    completion_mask: Tensor,
    with_entropies: bool = False,
    with_collision_entropies: bool = False,
) -> CompletionLogps:
    """Log-probability of each row's completion given its prompt, differentiable in the model's weights.

    Args:
        model: an encoder-decoder of transformers, plain or wrapped.
        input_ids: ids of the prompts. Shape (n, t).
        attention_mask: 1 for tokens of a prompt, 0 for padding. Shape (n, t).
        decoder_input_ids: ids of the completions, as they are to be answered. Shape (n, u).
        completion_mask: 1 for tokens of a completion, 0 for padding. Shape (n, u).
        with_entropies: whether the entropy at each token is computed as well.
        with_collision_entropies: the same of collision entropies.

    Returns:
        Sums and counts of shape (n,) and token values of shape (n, u); every token counts, as each is predicted.
    """
    inner: Any = model
    while not hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        inner = inner.module if hasattr(inner, "module") else inner.get_base_model()
    shifted = inner.prepare_decoder_input_ids_from_labels(labels=decoder_input_ids)
    outputs = model(
        input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=shifted, use_cache=False, return_dict=True
    )
    logits = outputs.logits.float()
    mask = completion_mask.bool()
    found = logits.gather(-1, decoder_input_ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
    token_logps = found.masked_fill(~mask, 0.0)
    num_tokens = mask.sum(-1)
    with torch.no_grad():
        mean_logits = logits.mean(-1).masked_fill(~mask, 0.0).sum(-1) / num_tokens.clamp(min=1)
        entropies = entropies_of(logits).masked_fill(~mask, 0.0) if with_entropies else None
        collisions = (
            collision_entropies_of(logits).masked_fill(~mask, 0.0).sum(-1) if with_collision_entropies else None
        )
    return CompletionLogps(
        token_logps.sum(-1), num_tokens, token_logps, mean_logits, outputs.get("aux_loss"), entropies, collisions
    )
