"""Batches of tokens with the labels that say which of them are learned from."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from stages.losses.sft import IGNORED
from stages.rows.batching import pad_rows

ROW_STARTS = "row_starts"
"""Where the rows of a batch begin that are laid end to end: places, of shape (n,)."""


class LabelCollator:
    """Makes a batch of encoded rows, padded on the right, with labels.

    Labels are the ids, but for padding and for what a row says isn't learned from: its column `labels` has the last
    word, then `prompt_length` and `spans`, which leave out what users and tools said between answers. What is padding
    follows from a row's length and not from its ids, so that an EOS is learned also where the tokenizer pads with it.

    Args:
        pad_id: id that fills short rows.
        learns_prompts: whether tokens of a prompt are learned from too.
        flattens: whether rows are laid end to end as one row without padding, which kernels for packed attention ask
            for; positions tell the model where each begins.
        is_encoder_decoder: whether labels are what a decoder answers, and not the ids.
    """

    def __init__(
        self, pad_id: int, *, learns_prompts: bool = False, flattens: bool = False, is_encoder_decoder: bool = False
    ) -> None:
        self.pad_id = pad_id
        self.learns_prompts = learns_prompts
        self.flattens = flattens
        self.is_encoder_decoder = is_encoder_decoder

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of `rows`.

        Returns:
            `input_ids` and `labels` of shape (n, t), and `attention_mask`, or for packed rows whose documents stay
            apart `position_ids`, of the same shape; `weight`, if the rows have one, of shape (n,), and where answers of
            a row don't count alike `token_weights` of shape (n, t). Labels of an encoder-decoder have a width of their
            own. Rows laid end to end are one row, and `row_starts` says where each begins.

        Raises:
            ValueError: rows to be laid end to end have weights or hidden tokens, which one row has no place for.
        """
        if self.flattens:
            return self._end_to_end(rows)
        ids = [_ints(row["input_ids"]) for row in rows]
        labels = [self.labels_of(row, tokens) for row, tokens in zip(rows, ids, strict=True)]
        batch: dict[str, Tensor] = {}
        if "weight" in rows[0]:
            batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        if "position_ids" in rows[0]:
            # Padding begins anew at each token, so that it sees none of the documents.
            beside = {"position_ids": [_ints(row["position_ids"]) for row in rows]}
        else:
            masks = [row.get("attention_mask", [1] * len(row_ids)) for row, row_ids in zip(rows, ids, strict=True)]
            beside = {"attention_mask": masks}
        batch["input_ids"] = pad_rows(ids, pad_id=self.pad_id)
        width = batch["input_ids"].shape[1]
        batch |= {name: pad_rows(values, width=width, pad_id=0) for name, values in beside.items()}
        batch["labels"] = pad_rows(labels, width=None if self.is_encoder_decoder else width, pad_id=IGNORED)
        if "span_weights" in rows[0]:
            batch["token_weights"] = torch.ones(batch["input_ids"].shape)
            for weights, row in zip(batch["token_weights"], rows, strict=True):
                _weigh(weights, row)
        return batch

    def _end_to_end(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [_ints(row["input_ids"]) for row in rows]
        starts = list(accumulate(map(len, ids[:-1]), initial=0))
        labels: list[int] = []
        positions: list[int] = []
        for row, tokens in zip(rows, ids, strict=True):
            is_weighed = "weight" in row or any(weight != 1 for weight in row.get("span_weights", ()))
            if is_weighed or not all(row.get("attention_mask", ())):
                raise ValueError(
                    "padding_free: expected rows without weights and without tokens hidden by attention_mask, found "
                    f"{'a weight' if is_weighed else 'hidden tokens'}; leave the column out, or padding_free"
                )
            positions += _ints(row["position_ids"]) if "position_ids" in row else range(len(tokens))
            # What stands before the first token is another row, from which it can't be predicted.
            labels += [IGNORED, *self.labels_of(row, tokens)[1:]][: len(tokens)]
        batch = {ROW_STARTS: torch.tensor(starts)}
        columns = {"input_ids": list(chain(*ids)), "position_ids": positions, "labels": labels}
        return batch | {name: torch.tensor([values]) for name, values in columns.items()}

    def labels_of(self, row: Mapping[str, Any], ids: list[int]) -> list[int]:
        """Labels of a row's tokens: those that it brings, or its ids behind what isn't learned from.

        Args:
            row: columns of the row.
            ids: its `input_ids`.

        Raises:
            ValueError: it brings more or fewer labels than ids.
        """
        if "labels" in row:
            labels = _ints(row["labels"])
            if len(labels) != len(ids) and not self.is_encoder_decoder:
                raise ValueError(f"expected a label for each of {len(ids)} tokens of a row, found {len(labels)}")
            return labels
        if self.learns_prompts or "prompt_length" not in row:
            return ids
        start = row["prompt_length"]
        if (spans := row.get("spans")) is None:
            return [IGNORED] * start + ids[start:]
        labels = [IGNORED] * len(ids)
        for begin, end in zip(spans[::2], spans[1::2], strict=True):
            labels[start + begin : start + end] = ids[start + begin : start + end]
        return labels


def _weigh(weights: Tensor, row: Mapping[str, Any]) -> None:
    """Write what the answers of a row weigh at the places of their tokens. Shape (t,)."""
    start, of_spans = row["prompt_length"], row["span_weights"]
    if of_spans is None:
        return
    spans = [0, len(row["input_ids"]) - start] if row.get("spans") is None else row["spans"]
    for begin, end, weight in zip(spans[::2], spans[1::2], of_spans, strict=True):
        weights[start + begin : start + end] = weight


def _ints(values: Any) -> list[int]:
    """A list of ids, whatever holds them."""
    found: list[int] = values.tolist() if hasattr(values, "tolist") else list(values)
    return found
