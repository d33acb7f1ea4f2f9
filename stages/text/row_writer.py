"""Artifacts written row by row, and rejects counted while they are written."""

import shutil
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from stages.contracts.artifact import ArtifactWriter, Contract, read_table, write_table
from stages.contracts.rejects import REJECTS
from stages.text.reasons import RejectedRowError

_WAITING_ROWS = 4096


class RowWriter:
    """Writes an artifact from rows as dicts, a few thousand in memory at a time. Used as a context manager.

    Args:
        path: folder to write.
        contract: what the artifact holds.
    """

    def __init__(self, path: Path, contract: Contract) -> None:
        self.path, self.contract = path, contract
        self.num_rows = 0
        self._optional: dict[str, list[Any]] = {field.name: [] for field in contract.optional}
        self._writer = ArtifactWriter(path, contract)
        self._schema = pa.schema(contract.fields)
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, error, trace)
        if kind is None and any(value is not None for values in self._optional.values() for value in values):
            self._write_optional()

    def set_meta(self, **facts: Any) -> None:
        """Add facts to those that the artifact keeps beside its rows."""
        self._writer.meta.update(facts)

    def add(self, row: dict[str, Any]) -> None:
        """Add one row, with every column of the contract; optional ones may be absent or None."""
        for name, values in self._optional.items():
            values.append(row.get(name))
        self._waiting.append(row)
        self.num_rows += 1
        if len(self._waiting) >= _WAITING_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []

    def _write_optional(self) -> None:
        """Write the artifact anew with the optional columns, of which one row at least turned out to have a value."""
        table = read_table(self.path, self.contract)
        for field in self.contract.optional:
            values = self._optional[field.name]
            if any(value is not None for value in values):
                table = table.append_column(field, pa.array(values, field.type))
        beside = self.path.with_name(f"{self.path.name}.with_optional")
        write_table(beside, table, self.contract, meta=self._writer.meta)
        shutil.rmtree(self.path)
        beside.rename(self.path)


class RejectWriter(RowWriter):
    """Writes the artifact `rejects` and counts it by reason.

    Args:
        path: folder to write.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, REJECTS)
        self.reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def refuse(self, error: RejectedRowError, *, file: str, line: int, row: str) -> None:
        """Add a row that can't be used.

        Args:
            error: why.
            file: file of the log, or the artifact that held the row.
            line: where it stands there, from 1.
            row: the row as JSON, or as it stood.
        """
        self.reasons[error.reason] += 1
        self._examples.setdefault(error.reason, f"{file}:{line}: {error.detail}")
        self.add({"file": file, "line": line, "reason": error.reason, "detail": error.detail, "row": row})

    def summary(self) -> str:
        """The commonest reasons and an example of the first, for a message; empty without rejects."""
        if not self.reasons:
            return ""
        common = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in common)
        return f"commonest reasons: {listed}; for example {self._examples[common[0][0]]}"
