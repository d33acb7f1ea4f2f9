"""A memo of results per row, so that a stage that runs again computes only the rows that are new.

Results stand in `<memo>/<fingerprint>/<digest>.arrow`, each beside the key of the row that it belongs to: a hash of
the columns that the result follows from. Shards are only ever added, whole and under a name that is the digest of
their bytes, so that a killed run loses at most what it hadn't flushed, a damaged shard is noticed, and several
processes may add at once. Nothing else is trusted: deleting the memo costs time and changes no result.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tqdm import tqdm

from stages.contracts.closure import code_listing
from stages.contracts.engines import RowFunction, chosen_engine, run_missing
from stages.contracts.files import written_beside
from stages.contracts.rows import canonical_json

KEY = "row_key"
_MAPPED_BYTES = 1 << 20
_KEY_ROWS = 4096


def cached_rows(
    table: pa.Table,
    compute: RowFunction,
    *,
    memo: Path | None,
    fingerprint: str,
    key_columns: Sequence[str],
    progress: str,
    flush_rows: int = 2048,
    costs: Sequence[int] | None = None,
    rows_worth_processes: int | None = None,
) -> pa.Table:
    """Results of all rows of `table`, of which only those not in the memo are computed, equal rows once.

    Args:
        table: rows to give results for.
        compute: gives one result row per row of the table that it is handed, in order. A row's result must follow
            from its key columns alone, bit for bit, whatever rows stand beside it, and all results have one schema.
            The engine that PLUMBLINE_ENGINE names calls it, perhaps in other processes.
        memo: folder of the memo; None computes everything and keeps nothing.
        fingerprint: hash of all else that results follow from: code, parameters, model, versions. It becomes the
            name of a folder, so results of another fingerprint are never read.
        key_columns: columns of `table` that the result follows from.
        progress: name to show beside the progress bar and in messages.
        flush_rows: rows handed to `compute` at once and then kept; what a kill can lose.
        costs: of each row, such as its length; the costliest rows are computed first, like beside like. None
            keeps the order.
        rows_worth_processes: rows to compute from which on processes are started even unasked; None never does.

    Returns:
        One result row per row of `table`, in its order; the same whether computed or remembered.

    Raises:
        ValueError: `compute` gave another number of rows, or a column named `row_key`; PLUMBLINE_ENGINE or
            PLUMBLINE_PROCESSES is none.
    """
    keys = row_keys(table, key_columns)
    shards = None if memo is None else memo / fingerprint
    parts = [] if shards is None else _read_shards(shards, progress)
    missing = _missing_rows(keys, parts)
    if costs is not None:
        missing = missing[np.argsort(-np.asarray(costs)[missing], kind="stable")]
    print(f"{progress}: {len(table) - len(missing):,} rows cached or repeated, {len(missing):,} to compute", flush=True)

    engine = chosen_engine(len(missing), rows_worth_processes=rows_worth_processes)
    pieces = (table.take(missing[start : start + flush_rows]) for start in range(0, len(missing), flush_rows))
    num_done = 0
    with tqdm(total=len(missing), desc=progress, unit="row", mininterval=1.0, disable=not len(missing)) as bar:
        for results in run_missing(pieces, _Checked(compute, progress), engine=engine):
            chosen = missing[num_done : num_done + len(results)]
            part = _keyed(results, keys.take(pa.array(chosen)))
            if shards is not None:
                _append(shards, part)
            parts.append(part)
            num_done += len(results)
            bar.update(len(results))
    if not parts:
        return _Checked(compute, progress)(table)
    known = pa.concat_tables(parts)
    return known.take(_positions(keys, known)).drop_columns([KEY]).combine_chunks()


def row_keys(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """128-bit hash of the named columns of each row; equal values give equal keys.

    Returns:
        binary(16), one per row.
    """
    keys: list[bytes] = []
    for batch in table.select(list(columns)).to_batches(max_chunksize=_KEY_ROWS):
        lists = [column.to_pylist() for column in batch.columns]
        keys.extend(
            xxhash.xxh3_128_digest(canonical_json(values).encode("utf-8", "surrogatepass"))
            for values in zip(*lists, strict=True)
        )
    return pa.array(keys, pa.binary(16))


def code_fingerprint(*modules: str) -> str:
    """Hash of what the source of `modules` and of all of this project that they import does; comments don't count.

    Args:
        modules: dotted names, such as "stages.tokenization".
    """
    return hashlib.sha256(code_listing(modules).encode()).hexdigest()


def _missing_rows(keys: pa.Array, parts: Iterable[pa.Table]) -> np.ndarray:
    """Place of the first row of each key that no part has, ascending."""
    known = set().union(*(part[KEY].to_pylist() for part in parts))
    missing = []
    for index, key in enumerate(keys.to_pylist()):
        if key not in known:
            known.add(key)
            missing.append(index)
    return np.array(missing, dtype=np.int64)


def _positions(keys: pa.Array, known: pa.Table) -> pa.Array:
    return pc.index_in(keys, value_set=known[KEY].combine_chunks())


@dataclass(frozen=True)
class _Checked:
    """Computes results and sees that there is one for each row."""

    compute: RowFunction
    progress: str

    def __call__(self, rows: pa.Table) -> pa.Table:
        results = self.compute(rows)
        if results.num_rows != rows.num_rows or KEY in results.column_names:
            raise ValueError(
                f"{self.progress}: expected {rows.num_rows} results without a column {KEY}, "
                f"found {results.num_rows} with columns {results.column_names}"
            )
        return results


def _keyed(results: pa.Table, keys: pa.Array) -> pa.Table:
    return results.append_column(pa.field(KEY, pa.binary(16), nullable=False), keys)


def _append(shards: Path, part: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as stream:
        stream.write_table(part.combine_chunks())
    data = sink.getvalue().to_pybytes()
    with written_beside(shards / f"{hashlib.sha256(data).hexdigest()}.arrow") as beside:
        beside.write_bytes(data)


def _read_shards(shards: Path, progress: str) -> list[pa.Table]:
    """All whole shards; one whose bytes don't match its name is removed, for its rows are computed again."""
    tables = []
    for path in sorted(shards.glob("*.arrow")):
        # Small ones are read: Linux lets a process map some 65,000 files, which a long log's memo has.
        is_small = path.stat().st_size < _MAPPED_BYTES
        data = pa.py_buffer(path.read_bytes()) if is_small else pa.memory_map(str(path)).read_buffer()
        if hashlib.sha256(data).hexdigest() != path.stem:
            print(f"{progress}: {path.name} of the row memo is damaged; its rows are computed again", flush=True)
            path.unlink(missing_ok=True)
            continue
        tables.append(pa.ipc.open_stream(data).read_all())
    return tables
