"""Artifacts: folders of Arrow shards under a declared schema, with a manifest that says what must be there.

A shard is an uncompressed Arrow IPC stream of a fixed number of rows, so that it is memory-mapped as it is, an
appended row changes the last shard alone, and `datasets.Dataset.from_file` opens it. Arrow files carry no
checksum (254 of 400 flipped bits went unseen when that was measured), so the manifest holds a digest of each
shard and every reader checks it.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from stages.contracts.files import file_digest, sync, write_json

BATCH_ROWS = 1024
SHARD_ROWS = 8192
MANIFEST = "manifest.json"


class ContractError(ValueError):
    """An artifact is missing, damaged, incomplete, or of another kind or version than its reader expects."""


@dataclass(frozen=True)
class Contract:
    """What an artifact of one kind holds."""

    kind: str
    """Name of the kind, also of its folder and of the argument that stages take it by."""
    version: int
    """Raised whenever a column changes its name, type or meaning."""
    fields: tuple[pa.Field, ...]
    """Columns in order. A fixed-size list stands for one of any width."""
    optional: tuple[pa.Field, ...] = ()
    """Columns that stand behind the others in an artifact with a row that has a value there, and else are absent."""

    def accepts(self, found: pa.Schema) -> bool:
        """Whether a table of schema `found` has these columns, in this order, of these types."""
        fields = self._fields_of(found.names)
        if found.names != [field.name for field in fields]:
            return False
        return all(_same_type(field.type, found.field(field.name).type) for field in fields)

    def _fields_of(self, names: Sequence[str]) -> tuple[pa.Field, ...]:
        return (*self.fields, *(field for field in self.optional if field.name in names))

    def conform(self, table: pa.Table) -> pa.Table:
        """`table` with the contract's columns, in its order and types.

        Raises:
            ContractError: a column is missing or unknown, or holds nulls or values that the contract rules out.
        """
        all_fields = self._fields_of(table.column_names)
        expected, found = {field.name for field in all_fields}, set(table.column_names)
        if expected != found:
            missing, unknown = sorted(expected - found), sorted(found - expected)
            raise ContractError(f"{self.kind}: expected other columns; missing {missing}, unknown {unknown}")
        columns, fields = [], []
        for field in all_fields:
            column = table[field.name]
            if not _same_type(field.type, column.type):
                column = column.cast(field.type)
            if not field.nullable and column.null_count:
                raise ContractError(f"{self.kind}: {column.null_count} rows have no {field.name}, which each must have")
            columns.append(column)
            fields.append(pa.field(field.name, column.type, nullable=field.nullable))
        return pa.table(columns, schema=pa.schema(fields))


def schema(kind: str, version: int, fields: Sequence[pa.Field], *, optional: Sequence[pa.Field] = ()) -> Contract:
    """The contract of one kind of artifact."""
    return Contract(kind, version, tuple(fields), tuple(optional))


def _same_type(expected: pa.DataType, found: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(expected) and pa.types.is_fixed_size_list(found):
        return bool(expected.value_type == found.value_type)
    return bool(expected == found)


class ArtifactWriter:
    """Writes an artifact piece by piece, so that a table larger than memory can be streamed to disk.

    Used as a context manager. The manifest is written last: a folder without one is no artifact.

    Args:
        path: folder to write; a stage gets one that the runtime publishes when the stage succeeds.
        contract: what the artifact holds.
        meta: small facts that belong to the artifact (counts, the width of an embedding); finite JSON values.
    """

    def __init__(self, path: Path, contract: Contract, *, meta: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.contract = contract
        self.meta = dict(meta or {})
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._shards: list[dict[str, Any]] = []
        self._schema: pa.Schema | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def write(self, table: pa.Table) -> None:
        """Add rows. Shard borders don't depend on how the rows were cut into calls."""
        conformed = self.contract.conform(table)
        self._schema = self._schema or conformed.schema
        self._waiting.append(conformed)
        self._waiting_rows += conformed.num_rows
        while self._waiting_rows >= SHARD_ROWS:
            waiting = pa.concat_tables(self._waiting)
            self._write_shard(waiting.slice(0, SHARD_ROWS))
            self._waiting = [waiting.slice(SHARD_ROWS)]
            self._waiting_rows -= SHARD_ROWS

    def _finish(self) -> None:
        if self._schema is None:
            self.write(pa.schema(self.contract.fields).empty_table())
        if self._waiting_rows or not self._shards:
            self._write_shard(pa.concat_tables(self._waiting))
        manifest = {
            "kind": self.contract.kind,
            "version": self.contract.version,
            "rows": sum(shard["rows"] for shard in self._shards),
            "columns": {field.name: str(field.type) for field in self._schema or ()},
            "shards": self._shards,
            "meta": self.meta,
        }
        write_json(self.path / MANIFEST, manifest)

    def _write_shard(self, table: pa.Table) -> None:
        path = self.path / f"part-{len(self._shards):05d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            for start in range(0, table.num_rows, BATCH_ROWS):
                stream.write_table(_canonical(table.slice(start, BATCH_ROWS)), max_chunksize=BATCH_ROWS)
        sync(path)
        self._shards.append({"file": path.name, "rows": table.num_rows, "sha256": file_digest(path)})


def _canonical(table: pa.Table) -> pa.Table:
    """The same rows in buffers of their own; slices and values under nulls would otherwise leak into the bytes."""
    return table.combine_chunks().take(pa.array(np.arange(table.num_rows)))


def write_table(path: Path, table: pa.Table, contract: Contract, *, meta: Mapping[str, Any] | None = None) -> None:
    """Write `table` as an artifact: equal rows give equal bytes, however the table was put together."""
    with ArtifactWriter(path, contract, meta=meta) as writer:
        writer.write(table)


def read_manifest(path: Path, contract: Contract) -> dict[str, Any]:
    """The manifest of the artifact at `path`.

    Raises:
        ContractError: there is no artifact, or one of another kind or version.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContractError(f"{name}: expected {contract.kind}, found no {MANIFEST}; rerun its stage") from None
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError):
        raise ContractError(f"{name}: {MANIFEST} is damaged; delete {path} and rerun its stage") from None
    if not _is_manifest(manifest):
        raise ContractError(f"{name}: {MANIFEST} is damaged; delete {path} and rerun its stage")
    found = (manifest.get("kind"), manifest.get("version"))
    if found != (contract.kind, contract.version):
        raise ContractError(
            f"{name}: expected {contract.kind} v{contract.version}, found {found[0]} v{found[1]}; rerun its stage"
        )
    return {**manifest, "meta": _Facts(name, manifest["meta"])}


class _Facts(dict[str, Any]):
    """Facts in a manifest; asked for one that isn't there, they say of which artifact."""

    def __init__(self, artifact: str, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self._artifact = artifact

    def __missing__(self, key: str) -> Any:
        raise ContractError(
            f"{self._artifact}: expected {key} in {MANIFEST}, found none; delete it and rerun its stage"
        )


def _is_manifest(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("rows"), int)
        and isinstance(found.get("meta"), dict)
        and isinstance(found.get("shards"), list)
        and all(
            isinstance(shard, dict) and isinstance(shard.get("file"), str) and "sha256" in shard
            for shard in found["shards"]
        )
    )


def read_table(path: Path, contract: Contract, *, columns: Iterable[str] | None = None) -> pa.Table:
    """The artifact at `path` as a memory-mapped table.

    Args:
        path: folder of the artifact.
        contract: what the reader expects.
        columns: names of the columns wanted; None gives all. An optional one that is absent is left out.

    Raises:
        ContractError: the artifact is missing, of another kind or version, or a shard is missing or damaged.
    """
    manifest = read_manifest(path, contract)
    tables = [_read_shard(path, shard) for shard in manifest["shards"]]
    table = pa.concat_tables(tables)
    if not contract.accepts(table.schema) or table.num_rows != manifest["rows"]:
        raise ContractError(f"{path}: the shards don't hold what {MANIFEST} says; delete it and rerun its stage")
    if columns is None:
        return table
    absent = {field.name for field in contract.optional} - set(table.column_names)
    return table.select([name for name in columns if name not in absent])


def read_batches(path: Path, contract: Contract) -> Iterator[pa.RecordBatch]:
    """The rows of the artifact at `path` in batches, one shard in memory at a time.

    Raises:
        ContractError: as `read_table`.
    """
    manifest = read_manifest(path, contract)
    num_rows = 0
    for shard in manifest["shards"]:
        table = _read_shard(path, shard)
        if not contract.accepts(table.schema):
            raise ContractError(f"{path}: the shards don't hold what {MANIFEST} says; delete it and rerun its stage")
        num_rows += table.num_rows
        yield from table.to_batches()
    if num_rows != manifest["rows"]:
        raise ContractError(f"{path}: the shards don't hold what {MANIFEST} says; delete it and rerun its stage")


def _read_shard(path: Path, shard: Mapping[str, Any]) -> pa.Table:
    file = path / Path(shard["file"]).name
    if not file.is_file():
        raise ContractError(f"{path}: shard {file.name} is missing; delete the folder and rerun its stage")
    if file_digest(file) != shard["sha256"]:
        raise ContractError(f"{path}: shard {file.name} is damaged; delete the folder and rerun its stage")
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
