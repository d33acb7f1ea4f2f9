"""Batches of encoded rows: padding, and several sequences of a row in one pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.rows.batching import bucket_length, padded, said_mask, stacked_rows


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
            and `decoder_input_ids` and `completion_mask` of the completions. Masks of completions leave out what users
            and tools said between answers, if there is a column `spans`. The columns besides, of shape (n,).
        """
        batch: dict[str, Any] = {}
        for name in rows[0]:
            if name.endswith("input_ids"):
                prefix = name.removesuffix("input_ids")
                ids, lengths = [row[name] for row in rows], [row[f"{prefix}prompt_length"] for row in rows]
                spans = [row.get(f"{prefix}spans") for row in rows]
                batch |= {f"{prefix}{key}": tensor for key, tensor in self._sequences(ids, lengths, spans).items()}
            elif not name.endswith(("prompt_length", "spans")):
                batch[name] = _column([row[name] for row in rows])
        return batch

    def _sequences(
        self, ids: Sequence[Sequence[int]], prompt_lengths: Sequence[int], spans: Sequence[Sequence[int] | None]
    ) -> dict[str, Tensor]:
        if self.is_encoder_decoder:
            cut = list(zip(ids, prompt_lengths, strict=True))
            prompts = padded([row[:length] for row, length in cut], pad_id=self.pad_id)
            answers = padded([row[length:] for row, length in cut], pad_id=self.pad_id)
            return {
                "input_ids": prompts.ids,
                "attention_mask": prompts.mask,
                "decoder_input_ids": answers.ids,
                "completion_mask": said_mask(answers.mask, [0] * len(ids), spans),
            }
        longest = max(map(len, ids))
        # Where kernels are made for each shape, few shapes: with a width of its own for each batch, making them took
        # most of a first epoch on an H200.
        width = bucket_length(longest) if torch.cuda.is_available() else longest
        rows, mask = padded(ids, pad_id=self.pad_id, width=width)
        return {
            "input_ids": rows,
            "attention_mask": mask,
            "completion_mask": said_mask(mask, prompt_lengths, spans),
        }


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
    return tensors[0] if len(tensors) == 1 else stacked_rows(tensors, fill=fill)
