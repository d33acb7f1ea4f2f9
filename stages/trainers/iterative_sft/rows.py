"""Rows that a training step is handed: ids or texts, checked, cut to length, and given labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from stages.losses.sft import IGNORED
from stages.text.encoding import with_single_ends
from stages.text.truncation import TruncationMode
from stages.trainers.core.fields import check_choice

IdLists = list[list[int]]


class StepRows(NamedTuple):
    """Makes rows of what `IterativeSFTTrainer.step` is called with."""

    tokenizer: PreTrainedTokenizerBase
    """Encodes texts, with its own special tokens."""
    max_length: int | None = None
    """Tokens of a row, at most; None cuts none."""
    truncation_mode: TruncationMode = "keep_end"
    """Whether a row that is cut keeps its end or its start."""
    is_encoder_decoder: bool = False
    """Whether labels are answers of their own, and not the tokens of the row."""

    def check(self) -> None:
        """See that the settings can be used.

        Raises:
            ValueError: one is out of range.
        """
        check_choice("truncation_mode", self.truncation_mode, TruncationMode)
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"expected max_length from 1, or None, found {self.max_length}")

    def read(
        self, *, input_ids: Any, attention_mask: Any, labels: Any, texts: Any, texts_labels: Any
    ) -> dict[str, IdLists]:
        """Columns `input_ids`, `attention_mask` and `labels`; without labels of their own, the ids are the labels.

        Args:
            input_ids: list of tensors of token ids, or None.
            attention_mask: 0 for tokens that aren't there, else 1; None keeps all.
            labels: tokens to learn, `IGNORED` where nothing is learned; None takes the ids.
            texts: list of texts, in place of `input_ids`.
            texts_labels: texts of the labels; None takes `texts`.

        Raises:
            ValueError: arguments contradict each other or differ in length, or a row has no tokens.
        """
        by_text, by_ids = (texts, texts_labels), (input_ids, attention_mask, labels)
        if (input_ids is None) == (texts is None) or (
            any(value is not None for value in by_text) and any(value is not None for value in by_ids)
        ):
            raise ValueError(
                "expected either input_ids, attention_mask and labels, or texts and texts_labels, found both or neither"
            )
        if texts is not None:
            ids = self._encoded(texts, "texts")
            masks = None
            targets = None if texts_labels is None else self._encoded(texts_labels, "texts_labels", are_labels=True)
        else:
            ids = _id_lists(input_ids, "input_ids")
            masks = None if attention_mask is None else _id_lists(attention_mask, "attention_mask")
            targets = None if labels is None else _id_lists(labels, "labels")
        masks = [[1] * len(row) for row in ids] if masks is None else masks
        _check_alike(ids, masks, "attention_mask")
        if targets is None:
            targets = [
                [token if kept else IGNORED for token, kept in zip(row, mask, strict=True)]
                for row, mask in zip(ids, masks, strict=True)
            ]
        name = "labels" if texts is None else "texts_labels"
        _check_alike(ids, targets, name, only_rows=self.is_encoder_decoder)
        columns = {"input_ids": ids, "attention_mask": masks, "labels": targets}
        columns = self._without_padding(columns)
        return {name: [self._cut(row) for row in column] for name, column in columns.items()}

    def _encoded(self, texts: Any, name: str, *, are_labels: bool = False) -> IdLists:
        if not isinstance(texts, str) and isinstance(texts, Sequence) and not texts:
            raise ValueError(f"expected {name} with at least one text, found none")
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"expected {name} as a list of texts, found {type(texts).__name__} {texts!r:.60}")
        as_targets = are_labels and self.is_encoder_decoder
        encoded = self.tokenizer(**{"text_target" if as_targets else "text": list(texts)}, truncation=False)
        ids = _id_lists(encoded["input_ids"], name)
        return [with_single_ends(self.tokenizer, text, row) for text, row in zip(texts, ids, strict=True)]

    def _without_padding(self, columns: dict[str, IdLists]) -> dict[str, IdLists]:
        """The columns without what a mask leaves out at either end of a row: padding is the collator's to make."""
        ends = []
        for index, mask in enumerate(columns["attention_mask"]):
            kept = [place for place, is_there in enumerate(mask) if is_there]
            if not kept:
                raise ValueError(f"expected tokens in row {index}, found an attention_mask that leaves out all of them")
            ends.append(slice(kept[0], kept[-1] + 1))
        of_row = ("input_ids", "attention_mask") if self.is_encoder_decoder else tuple(columns)
        cut = {name: [row[end] for row, end in zip(columns[name], ends, strict=True)] for name in of_row}
        return {**columns, **cut}

    def _cut(self, row: list[int]) -> list[int]:
        if self.max_length is None or len(row) <= self.max_length:
            return row
        return row[-self.max_length :] if self.truncation_mode == "keep_end" else row[: self.max_length]


def labels_are_ids(columns: dict[str, IdLists]) -> bool:
    """Whether each label is the id at its place, or `IGNORED`."""
    return all(
        label in (token, IGNORED)
        for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True)
        for token, label in zip(ids, labels, strict=True)
    )


def _id_lists(rows: Any, name: str) -> IdLists:
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not rows:
        raise ValueError(f"expected {name} as a list with a tensor of token ids per row, found {rows!r:.60}")
    lists = [[_as_id(token) for token in (row.tolist() if hasattr(row, "tolist") else row)] for row in rows]
    for index, row in enumerate(lists):
        if not row or not all(isinstance(token, int) for token in row):
            raise ValueError(f"expected token ids in row {index} of {name}, found {row!r:.60}")
    return lists


def _as_id(token: Any) -> Any:
    # Labels are documented as tensors of floats.
    return int(token) if isinstance(token, float) and token.is_integer() else token


def _check_alike(ids: IdLists, others: IdLists, name: str, *, only_rows: bool = False) -> None:
    if len(ids) != len(others):
        raise ValueError(f"expected {name} for each of {len(ids)} rows, found {len(others)}")
    for index, (row, other) in enumerate(zip(ids, others, strict=True)):
        if not only_rows and len(row) != len(other):
            raise ValueError(
                f"expected {len(row)} tokens in row {index} of {name}, as many as the row has, found {len(other)}; "
                f"label a token that isn't to be learned {IGNORED}"
            )
