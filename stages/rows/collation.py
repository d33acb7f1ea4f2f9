"""Batches of encoded rows: padding, and several sequences of a row in one pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase


class PreferenceCollator:
    """Makes a batch of encoded rows: ids and masks padded on the right, numbers as tensors, texts as lists.

    Args:
        pad_id: id that fills short rows.
        is_encoder_decoder: whether prompts and completions go into tensors of their own.
    """

    def __init__(self, pad_id: int, *, is_encoder_decoder: bool = False) -> None:
        self.pad_id = pad_id
        self.is_encoder_decoder = is_encoder_decoder

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`.

        Returns:
            For each sequence of the rows, under the prefix of its columns, `input_ids`, `attention_mask` and
            `completion_mask` of shape (n, t); for an encoder-decoder, `input_ids` and `attention_mask` of the prompts
            and `decoder_input_ids` and `completion_mask` of the completions. The columns besides, of shape (n,).
        """
        batch: dict[str, Any] = {}
        for name in rows[0]:
            if name.endswith("input_ids"):
                prefix = name.removesuffix("input_ids")
                ids, lengths = [row[name] for row in rows], [row[f"{prefix}prompt_length"] for row in rows]
                batch |= {f"{prefix}{key}": tensor for key, tensor in self._sequences(ids, lengths).items()}
            elif not name.endswith("prompt_length"):
                batch[name] = _column([row[name] for row in rows])
        return batch

    def _sequences(self, ids: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> dict[str, Tensor]:
        if self.is_encoder_decoder:
            prompts, prompt_mask = _padded([row[:n] for row, n in zip(ids, prompt_lengths, strict=True)], self.pad_id)
            answers, answer_mask = _padded([row[n:] for row, n in zip(ids, prompt_lengths, strict=True)], self.pad_id)
            return {
                "input_ids": prompts,
                "attention_mask": prompt_mask,
                "decoder_input_ids": answers,
                "completion_mask": answer_mask,
            }
        padded, mask = _padded(ids, self.pad_id)
        is_behind_prompt = torch.arange(padded.shape[1]) >= torch.tensor(prompt_lengths)[:, None]
        return {"input_ids": padded, "attention_mask": mask, "completion_mask": mask * is_behind_prompt}


def default_collator(
    tokenizer: PreTrainedTokenizerBase | None, *, padding_value: int | None, is_encoder_decoder: bool
) -> PreferenceCollator:
    """The collator that pads with `padding_value`, or as the tokenizer does.

    Raises:
        ValueError: neither gives an id to pad with.
    """
    candidates = (padding_value, getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None))
    pad_id = next((candidate for candidate in candidates if candidate is not None), None)
    if pad_id is None:
        raise ValueError(
            "expected processing_class, a tokenizer with a pad token, for the default collator, found none; give one, "
            "or padding_value, or a data_collator"
        )
    return PreferenceCollator(pad_id, is_encoder_decoder=is_encoder_decoder)


def _padded(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, dtype=np.int64)
    padded[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))


def _column(values: list[Any]) -> Tensor | list[Any]:
    first = values[0]
    if isinstance(first, bool):
        return torch.tensor(values, dtype=torch.bool)
    if isinstance(first, float):
        return torch.tensor(values, dtype=torch.float32)
    return torch.tensor(values) if isinstance(first, int) else values


def stacked(batch: Mapping[str, Any], sequences: Sequence[str], name: str, *, fill: int = 0) -> Tensor:
    """One tensor of the sequences of a batch, one sequence's rows after the other's.

    Args:
        batch: what `PreferenceCollator` made.
        sequences: k prefixes.
        name: which tensor, such as "input_ids"; those of the sequences have shape (n, t), with t of each its own.
        fill: what makes short rows as long as the longest.

    Returns:
        Shape (k * n, t).
    """
    tensors: list[Tensor] = [batch[f"{sequence}{name}"] for sequence in sequences]
    if len(tensors) == 1:
        return tensors[0]
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])
