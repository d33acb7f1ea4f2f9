"""Tables of the artifact `training_rows`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.contracts.training_rows import TRAINING_ROWS


class FoundRows(NamedTuple):
    """Rows that a method learns from."""

    table: pa.Table
    """Columns of `TRAINING_ROWS`."""
    counts: dict[str, dict[str, int]]
    """By split: what there is to learn from, and what was left out for which reason."""
    origins: tuple[str, ...] = ()
    """Names of the references besides the model that training starts from."""


def training_table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns as a table of `TRAINING_ROWS`; those that aren't given are null.

    Args:
        columns: of equal length; at least `row`, `weight` and `split`.
    """
    number = len(columns["row"])
    types = {field.name: field.type for field in TRAINING_ROWS.fields}
    missing = {name: pa.nulls(number, kind) for name, kind in types.items() if name not in columns}
    return TRAINING_ROWS.conform(pa.table({**columns, **missing}))


def refuse_turn_weights(rows: pa.Table) -> None:
    """Raise ValueError if an answer of rows of `tokens` weighs neither 0 nor 1, which only SFT's loss knows."""
    if "span_weights" not in rows.column_names:
        return
    weighed = rows.filter(rows["span_weights"].is_valid())
    if len(weighed):
        raise ValueError(
            f"expected answers that weigh 0 or 1 in a method that compares whole completions, found "
            f"{weighed['span_weights'][0].as_py()} in {weighed['row_id'][0]} and {len(weighed) - 1:,} further rows; "
            "set normalization.turn_decay: 1 and give messages the weight 0 or 1, or learn these rows by sft"
        )


def places_of(is_kept: Any) -> pa.Array:
    """Where a mask is true, from 0."""
    return pa.array(np.flatnonzero(is_kept.to_numpy(zero_copy_only=False)), pa.int32())
