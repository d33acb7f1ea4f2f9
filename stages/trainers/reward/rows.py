"""Pairs that the reward trainer reads: raw texts, the documented columns of token ids, or what the stages made."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset

from stages.rows.raw import PAIR, LeftOut, RowReader

logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
DOCUMENTED = tuple(f"{name}_{side}" for side in SIDES for name in ("input_ids", "attention_mask"))
"""Columns of token ids under their documented names."""

TooLong = Literal["truncate", "drop"]


def check_max_length(max_length: int | None) -> None:
    """Raise ValueError unless a row may have a token."""
    if max_length is not None and max_length < 1:
        raise ValueError(f"expected max_length of at least 1, found {max_length}; None sets no limit")


class PairRows(NamedTuple):
    """Pairs to learn from, with the columns of two sequences and perhaps `margin` and `weight`."""

    rows: Dataset
    left_out: LeftOut
    """Pairs left out, by reason."""
    num_truncated: int
    """Pairs of which at least one completion lost its end."""


def read_pair_rows(
    dataset: Dataset, reader: RowReader, *, name: str, max_length: int | None, too_long: TooLong
) -> PairRows:
    """The pairs of a dataset, encoded and cut.

    Args:
        dataset: rows of `chosen` and `rejected` texts or messages, of the documented columns, or of what the stages
            made; perhaps with a column `margin`.
        reader: encodes texts.
        name: what to call the dataset in messages.
        max_length: tokens of a prompt and completion together, at most. None sets no limit.
        too_long: whether a pair with a longer row is cut at the end, or left out.

    Raises:
        ValueError: there are no pairs, a margin is no finite number, or texts come without a tokenizer.
    """
    _check_margins(dataset, name)
    came_with = dataset.column_names
    if "input_ids_chosen" in dataset.column_names:
        dataset = dataset.map(
            _from_documented, batched=True, remove_columns=_present(dataset, DOCUMENTED), desc=f"Reading the {name}"
        )
    rows, left_out = reader.paired(dataset, name=name, extra_columns=("margin",))
    if max_length is None and "chosen_input_ids" in came_with:
        # What the stages made is cut and compared already.
        return PairRows(rows, left_out, 0)
    return _cut(rows, left_out, name=name, max_length=max_length, too_long=too_long)


def _present(dataset: Dataset, columns: Sequence[str]) -> list[str]:
    return [column for column in columns if column in dataset.column_names]


def _check_margins(dataset: Dataset, name: str) -> None:
    if "margin" not in dataset.column_names:
        return
    for index, value in enumerate(dataset["margin"]):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ValueError(
                f"{name}: expected a finite number as margin in every pair, found {value!r} in row {index}; give 0 "
                "where a pair has none"
            )


def _from_documented(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The columns that the stages write, of the documented ones; what a mask hides is no part of a row."""
    found: dict[str, list[Any]] = {}
    for side in SIDES:
        if f"input_ids_{side}" not in batch:
            raise ValueError(f"expected a column input_ids_{side} beside the other's, found {', '.join(batch)}")
        ids = batch[f"input_ids_{side}"]
        masks = batch.get(f"attention_mask_{side}", [[1] * len(row) for row in ids])
        found[f"{side}_input_ids"] = [unmasked(*row) for row in zip(ids, masks, strict=True)]
        found[f"{side}_prompt_length"] = [0] * len(ids)
    return found


def unmasked(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The ids that a mask leaves.

    Raises:
        ValueError: the two differ in length.
    """
    if len(ids) != len(mask):
        raise ValueError(
            f"expected an attention mask of as many entries as there are ids, found {len(mask)} for {len(ids)}"
        )
    return [token for token, is_token in zip(ids, mask, strict=True) if is_token]


def _cut(rows: Dataset, left_out: LeftOut, *, name: str, max_length: int | None, too_long: TooLong) -> PairRows:
    """Rows of at most `max_length` tokens; what can't be compared any more is left out and counted."""
    fits = {"max_length": max_length, "too_long": too_long}
    checked = rows.map(_cut_batch, batched=True, fn_kwargs=fits, desc=f"Cutting the {name}")
    reasons = checked["left_out"][:]
    num_truncated = sum(checked["is_cut"])
    dropped = Counter(reason for reason in reasons if reason)
    if dropped:
        checked = checked.select([index for index, reason in enumerate(reasons) if not reason])
    if dropped or num_truncated:
        parts = [f"cut {num_truncated}", *(f"left out {count} {reason}" for reason, count in sorted(dropped.items()))]
        logger.warning("%s: of %d pairs: %s (max_length %s)", name, len(rows), ", ".join(parts), max_length)
    if not len(checked):
        raise ValueError(f"{name}: expected pairs, found none left ({LeftOut(dict(dropped))}); raise max_length")
    counts = Counter(left_out.counts) + dropped
    return PairRows(checked.remove_columns(["left_out", "is_cut"]), LeftOut(dict(counts)), num_truncated)


def _cut_batch(
    batch: Mapping[str, Sequence[Any]], *, max_length: int | None, too_long: TooLong
) -> dict[str, list[Any]]:
    columns = [batch[f"{prefix}{name}"] for prefix in PAIR for name in ("input_ids", "prompt_length")]
    found: dict[str, list[Any]] = {f"{prefix}input_ids": [] for prefix in PAIR} | {"left_out": [], "is_cut": []}
    for chosen, chosen_prompt, rejected, rejected_prompt in zip(*columns, strict=True):
        cut = [row[:max_length] for row in (chosen, rejected)]
        is_cut = cut != [chosen, rejected]
        reason = ""
        if is_cut and too_long == "drop":
            reason = "too_long"
        elif any(len(row) <= prompt for row, prompt in zip(cut, (chosen_prompt, rejected_prompt), strict=True)):
            reason = "no_room_for_completion" if is_cut else "empty_completion"
        elif cut[0] == cut[1]:
            reason = "identical_pair"
        for prefix, row in zip(PAIR, cut, strict=True):
            found[f"{prefix}input_ids"].append(row)
        found["left_out"].append(reason)
        found["is_cut"].append(is_cut and not reason)
    return found
