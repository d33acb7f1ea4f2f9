"""A database on disk for what a log holds more of than memory does: ids, votes, turns and who voted what.

DuckDB, in one thread and within a fixed amount of memory; what has no room there goes to files below its folder.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import duckdb
import pyarrow as pa

_WAITING_ROWS = 8192
_RESULT_ROWS = 4096

RowT = TypeVar("RowT")


class EventStore:
    """The database of one run. Used as a context manager.

    Args:
        folder: where it lies; emptied first, since what a killed run left there is of no use.
        memory_mb: what it may take of memory, in megabytes.
    """

    def __init__(self, folder: Path, *, memory_mb: int = 400) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self._tables: list[Table] = []
        self._connection = duckdb.connect(
            str(folder / "events.duckdb"),
            config={
                "memory_limit": f"{memory_mb}MB",
                "temp_directory": str(folder / "spilled"),
                # Sums of floats and the order of equal rows are the same every time in one thread alone.
                "threads": 1,
                # A name in SQL is a table of ours, never a variable of Python.
                "python_enable_replacements": False,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def table(self, name: str, /, **columns: pa.DataType) -> "Table":
        """Make a table to add rows to."""
        made = Table(self._connection, name, pa.schema(list(columns.items())))
        self._tables.append(made)
        return made

    def run(self, sql: str, *values: Any) -> None:
        """Run statements, after what waits to be written is."""
        self._flush()
        self._connection.execute(sql, list(values))

    def one(self, sql: str, *values: Any) -> tuple[Any, ...]:
        """The only row of a result."""
        self._flush()
        ((*row,),) = self._connection.execute(sql, list(values)).fetchall()
        return tuple(row)

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a result, a few thousand in memory at a time; other statements may run meanwhile."""
        for batch in self.batches(sql):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The same as Arrow batches."""
        self._flush()
        with self._connection.cursor() as cursor:
            yield from cursor.sql(sql).to_arrow_reader(_RESULT_ROWS)

    def _flush(self) -> None:
        for table in self._tables:
            table.flush()


class Table:
    """A table of the database, filled row by row."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str, columns: pa.Schema) -> None:
        self.name, self.columns = name, columns
        self._connection = connection
        self._waiting: list[Sequence[Any]] = []
        self._write(f"create table {name} as select * from waiting")  # noqa: S608 # a name of ours

    def add(self, *values: Any) -> None:
        """Add a row."""
        self._waiting.append(values)
        if len(self._waiting) >= _WAITING_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._waiting:
            self._write(f"insert into {self.name} select * from waiting")  # noqa: S608 # a name of ours
            self._waiting = []

    def _write(self, sql: str) -> None:
        values = zip(*self._waiting, strict=True) if self._waiting else [[] for _ in self.columns]
        arrays = [pa.array(column, field.type) for column, field in zip(values, self.columns, strict=True)]
        self._connection.register("waiting", pa.table(arrays, schema=self.columns))
        self._connection.execute(sql)
        self._connection.unregister("waiting")


class InStep(Generic[RowT]):
    """Rows by the number in their first column, for somebody who goes through the numbers in order.

    Args:
        rows: in the order of their numbers.
        kind: makes what is given of a row.
    """

    def __init__(self, rows: Iterator[tuple[Any, ...]], kind: Callable[..., RowT]) -> None:
        self._rows, self._kind = rows, kind
        self._next = next(rows, None)

    def take(self, number: int) -> list[RowT]:
        """All rows of a number, which must be larger than the one asked for before."""
        found: list[RowT] = []
        while self._next is not None and self._next[0] <= number:
            if self._next[0] == number:
                found.append(self._kind(*self._next))
            self._next = next(self._rows, None)
        return found
