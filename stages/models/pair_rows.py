"""Pairs of the artifact `tokens`, whose two rows share a `pair_id`, as one row each."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.tokens import TOKENS

_SHARED = ("pair_id", "prompt_id", "weight")
_OWN = ("row_id", "input_ids", "prompt_length")


class Pairs(NamedTuple):
    """Pairs of one split, and how many rows make none."""

    table: pa.Table
    """Columns `pair_id`, `prompt_id`, `weight`, and `row_id`, `input_ids` and `prompt_length` with the prefixes
    `chosen_` and `rejected_`; in the order in which the pairs begin in `tokens`."""
    counts: dict[str, int]
    """`pairs`; `without_pair` rows of the split that belong to none; `without_other` rows whose other row is missing;
    `other_split` rows left out."""


def read_pairs(tokens: Path, *, split: str) -> Pairs:
    """The pairs of `tokens` in a split.

    Args:
        tokens: `tokens` artifact.
        split: "train" or "test".

    Raises:
        ContractError: the artifact is missing or damaged.
        ValueError: there are no pairs in the split.
    """
    rows = read_table(tokens, TOKENS, columns=[*_SHARED, *_OWN, "label", "split"])
    is_split = pc.equal(rows["split"], split)
    inside = rows.filter(is_split)
    sides: dict[str, dict[bool, int]] = {}
    for index, (pair_id, label) in enumerate(
        zip(inside["pair_id"].to_pylist(), inside["label"].to_pylist(), strict=True)
    ):
        if pair_id is not None and label is not None:
            sides.setdefault(pair_id, {})[label] = index
    whole = [(side[True], side[False]) for side in sides.values() if len(side) == 2]
    chosen, rejected = np.array(whole, dtype=np.int64).reshape(-1, 2).T
    columns = {name: inside[name].take(chosen) for name in _SHARED}
    for prefix, places in (("chosen", chosen), ("rejected", rejected)):
        columns |= {f"{prefix}_{name}": inside[name].take(places) for name in _OWN}
    num_without_other = sum(len(side) == 1 for side in sides.values())
    counts = {
        "pairs": len(whole),
        "without_other": num_without_other,
        "without_pair": len(inside) - 2 * len(whole) - num_without_other,
        "other_split": len(rows) - len(inside),
    }
    if not whole:
        raise ValueError(
            f"{tokens}: expected pairs of chosen and rejected in the split {split}, found none among {len(inside)} "
            "rows; give a log with prompt, chosen and rejected"
        )
    return Pairs(pa.table(columns).combine_chunks(), counts)


def pair_margins(pairs: pa.Table, completions: Path, column: str) -> pa.Array:
    """By how much the chosen completion of each pair should win, as the log says.

    Args:
        pairs: `Pairs.table`.
        completions: `completions` artifact, which keeps the columns of the log.
        column: the log's column with the margin.

    Returns:
        Float32, in the order of `pairs`.

    Raises:
        ContractError: `completions` hasn't the pairs of `tokens`.
        ValueError: the log has no such column, or a pair no finite number in it.
    """
    rows = read_table(completions, COMPLETIONS, columns=["pair_id", "source"])
    sources = dict(zip(rows["pair_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
    margins = []
    for pair_id in pairs["pair_id"].to_pylist():
        if pair_id not in sources:
            raise ContractError(f"{completions}: expected the pairs of tokens, found no {pair_id}; rerun tokenization")
        source = json.loads(sources[pair_id])
        found = source.get(column)
        if isinstance(found, bool) or not isinstance(found, int | float) or not np.isfinite(found):
            raise ValueError(
                f"margin_column: expected a finite number in the column {column!r} of every pair, found {found!r} in "
                f"{pair_id}, which has {', '.join(sorted(source)) or 'no columns'}; name another column, or null"
            )
        margins.append(float(found))
    return pa.array(margins, pa.float32())
