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


def places_of(is_kept: Any) -> pa.Array:
    """Where a mask is true, from 0."""
    return pa.array(np.flatnonzero(is_kept.to_numpy(zero_copy_only=False)), pa.int32())
