"""Log-probabilities of rows under a frozen model, each row's bits a function of that row and the model alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from stages.models.devices import default_device, place
from stages.models.loading import load_causal_lm
from stages.models.logprobs import completion_logps
from stages.rows.batching import fixed_batches, padded, said_mask


class RowLogps(NamedTuple):
    """Log-probabilities of n completions, in nats."""

    logps: NDArray[np.float32]
    """Sum over the completion's tokens. Shape (n,)."""
    num_tokens: NDArray[np.int32]
    """Tokens of the completion. Shape (n,)."""
    token_logps: list[NDArray[np.float32]]
    """Per row, one entry per token of the completion; 0 for one that the assistant didn't say."""


@torch.inference_mode()
def row_logps(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    *,
    batch_size: int,
    chunk_size: int = 256,
    spans: Sequence[Sequence[int] | None] | None = None,
) -> RowLogps:
    """Log-probability of each completion given its prompt, in batches of fixed shape.

    A row is padded to the width of its own length in a batch of always `batch_size` rows, and positions are projected
    onto the vocabulary always `chunk_size` at once, so neighbours can't change a row's value, not even its last bit.

    Args:
        model: a causal language model in evaluation mode, on the device to compute on.
        sequences: token ids of prompt and completion.
        prompt_lengths: how many of them are the prompt. Nothing predicts the first token of an empty prompt's
            completion, so it counts as prompt.
        batch_size: rows of a forward pass.
        chunk_size: positions projected at once.
        spans: of each row, the tokens of its completion that the assistant said, as start, end, start, end, which
            alone count. None: all of them, of every row.

    Returns:
        Values in the order of `sequences`.
    """
    device = next(model.parameters()).device
    logps = np.zeros(len(sequences), dtype=np.float32)
    num_tokens = np.zeros(len(sequences), dtype=np.int32)
    token_logps = [np.zeros(0, dtype=np.float32)] * len(sequences)
    for rows, filled, width in fixed_batches([len(sequence) for sequence in sequences], batch_size=batch_size):
        input_ids, attention_mask = padded([sequences[row] for row in filled], pad_id=0, width=width)
        # Rows that fill a short batch up have no completion.
        starts = [prompt_lengths[row] for row in rows] + [width] * (batch_size - len(rows))
        said = [None if spans is None else spans[row] for row in rows]
        result = completion_logps(
            model,
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            completion_mask=said_mask(attention_mask, starts, said).bool().to(device),
            chunk_size=chunk_size,
            fixed_shape=True,
        )
        values = result.token_logps.float().cpu().numpy()
        logps[rows] = result.logps.float().cpu().numpy()[: len(rows)]
        num_tokens[rows] = result.num_tokens.cpu().numpy()[: len(rows)]
        for i, row in enumerate(rows):
            token_logps[row] = values[i, max(prompt_lengths[row], 1) - 1 : len(sequences[row]) - 1].copy()
    return RowLogps(logps, num_tokens, token_logps)


@dataclass(frozen=True)
class RowScorer:
    """Gives log-probabilities of rows of input_ids, prompt_length and perhaps spans, as `reference_logps` has them."""

    base_model: Path
    """The model."""
    dtype: str
    """Type of its weights."""
    bf16: bool
    """Whether to compute in bfloat16."""
    batch_size: int
    """Rows of a forward pass."""
    chunk_size: int
    """Positions projected at once."""
    token_level: bool
    """Whether to give the values of single tokens too."""

    @cached_property
    def model(self) -> nn.Module:
        """The model on the device to compute on, loaded once a process and only if there is something to compute."""
        return place(load_causal_lm(self.base_model, dtype=self.dtype), default_device())

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Results in the order of `rows`."""
        with torch.autocast(default_device().type, dtype=torch.bfloat16, enabled=self.bf16):
            results = row_logps(
                self.model,
                rows["input_ids"].to_pylist(),
                rows["prompt_length"].to_pylist(),
                batch_size=self.batch_size,
                chunk_size=self.chunk_size,
                spans=rows["spans"].to_pylist() if "spans" in rows.column_names else None,
            )
        token_logps = results.token_logps if self.token_level else [None] * len(rows)
        return pa.table(
            {
                "logps": pa.array(results.logps, pa.float32()),
                "num_tokens": pa.array(results.num_tokens, pa.int32()),
                "token_logps": pa.array(token_logps, pa.list_(pa.float32())),
            }
        )
