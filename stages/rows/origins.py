"""Rows whose answers several models gave, each compared with the model that gave it."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.rows.scored import check_same_rows


def log_column(rows: pa.Table, completions: Path, column: str) -> list[Any]:
    """What the log has in a column, for each row of `tokens`; None where it has nothing.

    Args:
        rows: with the columns `row_id` and `pair_id`.
        completions: `completions` artifact, which keeps the columns of the log.
        column: name of the column.
    """
    table = read_table(completions, COMPLETIONS, columns=["row_id", "pair_id", "source"])
    ids = zip(table["row_id"].to_pylist(), table["pair_id"].to_pylist(), strict=True)
    sources = dict(zip(ids, table["source"].to_pylist(), strict=True))
    own = zip(rows["row_id"].to_pylist(), rows["pair_id"].to_pylist(), strict=True)
    return [json.loads(sources.get(row) or "{}").get(column) for row in own]


class Origins(NamedTuple):
    """Which reference each row is compared with: the model that gave its answer, as the log says."""

    completions: Path
    """`completions` artifact."""
    references: Sequence[Path]
    """`reference_logps` artifacts besides that of the model that training starts from; their folders' names are those
    of the references."""
    column: str
    """Column of the log that says which model gave an answer."""
    rejected_column: str | None = None
    """The same of a pair's rejected answer; None: one model gave both."""
    names: Mapping[str, str] | None = None
    """Name of the reference that each value of the column stands for. None takes values as names."""

    def applied(self, rows: pa.Table, start: str) -> pa.Table:
        """Rows with the log-probability of each labelled one under the reference of its origin.

        Args:
            rows: all rows of `tokens` with `reference_logps`, those under the model that training starts from.
            start: name of that model, which answers may come from too.

        Raises:
            ContractError: an artifact is missing or damaged, or not of these rows.
            ValueError: a labelled row has no origin, or one without a reference.
        """
        found = {start: rows["reference_logps"].to_numpy()}
        for path in self.references:
            table = read_table(path, REFERENCE_LOGPS, columns=["row_id", "logps"])
            check_same_rows(path, table["row_id"], rows["row_id"], what="the rows of tokens")
            found[path.name] = table["logps"].to_numpy()
        logps = np.array(found[start])
        names = self._names(rows, known=found)
        for name, own in found.items():
            at_name = np.array([each == name for each in names], dtype=bool)
            logps[at_name] = own[at_name]
        at = rows.column_names.index("reference_logps")
        return rows.set_column(at, "reference_logps", pa.array(logps, pa.float32()))

    def _names(self, rows: pa.Table, known: Collection[str]) -> list[str | None]:
        """Name of the reference of each row; None for one without label, which isn't compared with any."""
        origins = log_column(rows, self.completions, self.column)
        labels = rows["label"].to_pylist()
        if self.rejected_column is not None:
            others = log_column(rows, self.completions, self.rejected_column)
            is_rejected = zip(rows["pair_id"].to_pylist(), labels, strict=True)
            origins = [
                other if pair is not None and label is False else origin
                for origin, other, (pair, label) in zip(origins, others, is_rejected, strict=True)
            ]
        texts = [None if origin is None else str(origin) for origin in origins]
        names = [text if self.names is None else self.names.get(str(text)) for text in texts]
        for name, origin, label, row in zip(names, origins, labels, rows["row_id"].to_pylist(), strict=True):
            if label is not None and name not in known:
                raise ValueError(
                    f"origin_column: expected an answer of one of {', '.join(known)}, found {origin!r} in the column "
                    f"{self.column!r} of row {row}; say in origin_references what it stands for, and give "
                    "--origin-reference-logps of that model"
                )
        return [None if label is None else name for name, label in zip(names, labels, strict=True)]
