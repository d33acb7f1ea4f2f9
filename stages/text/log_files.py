"""Rows of feedback logs, one by one, each with the file and line where it stands.

JSON lines, JSON, CSV, TSV, Parquet and Arrow; text also compressed. What is wrong with one row costs that row alone
and is said of it; what is wrong with a file, such as a table cut in the middle, is an error.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.rows import canonical_json
from stages.text.layouts import as_json_value
from stages.text.reasons import RejectedRowError

MAX_DEPTH = 64
MAX_ROW_BYTES = 8 * 2**20
_SHOWN = 2000
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException)


class LogFile(NamedTuple):
    """A file of a log."""

    path: Path
    name: str
    """What it is called in counts and rejects; the same wherever the log lies on a machine."""


class LoggedRow(NamedTuple):
    """A row as it stands in a log."""

    file: str
    line: int
    """Line on which it begins, or its number in a table, from 1."""
    row: dict[str, Any] | None
    """None if it can't be read."""
    text: str
    """The row as it stands, or as JSON if it stands in a table."""
    error: RejectedRowError | None
    """Why it can't be read."""


def is_log(path: Path) -> bool:
    """Whether a file's name says that rows can be read from it."""
    return _reader_of(path) is not None


def known_suffixes() -> str:
    """The file types that can be read, for messages."""
    return f"{', '.join(_READERS)}; text also with {', '.join(_OPENERS)}"


def read_log(files: Sequence[LogFile], *, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[LoggedRow]:
    """All rows of all files, in order, also those that can't be read.

    Args:
        files: the files of the log.
        max_row_bytes: longest row of a text file; a longer one is refused unread.

    Raises:
        ValueError: a file is of an unknown kind or damaged.
    """
    for file in files:
        reader = _reader_of(file.path)
        if reader is None:
            raise ValueError(
                f"{file.name}: expected a log of a known kind ({known_suffixes()}), found {file.path.name}"
            )
        num_rows = 0
        try:
            for logged in reader(file, max_row_bytes):
                num_rows += 1
                yield logged
        except _DAMAGED as error:
            message = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{file.name}: damaged or cut off after {num_rows:,} rows ({message}); fetch the file again"
            ) from None


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object, strictly: no NaN, no repeated keys, no halves of characters.

    Raises:
        RejectedRowError: the text is no such object.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except RejectedRowError:
        raise
    except ValueError as error:
        raise RejectedRowError("json_invalid", f"expected a JSON object, found {error}") from None
    return _checked_object(value, text)


def _checked_object(value: Any, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RejectedRowError("not_an_object", f"expected a JSON object, found {type(value).__name__}")
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    if "\\u0000" in text or "\0" in text or _SURROGATE.search(text):
        _check_characters(value)
    return value


def _check_characters(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise RejectedRowError("nul_character", "expected text, found a NUL character in it")
        if _SURROGATE_CHARACTER.search(value):
            raise RejectedRowError("lone_surrogate", "expected text, found half of a surrogate pair in it")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_characters(key)
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _too_deep() -> RejectedRowError:
    return RejectedRowError("too_deep", f"expected values nested up to {MAX_DEPTH} deep, found deeper ones")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RejectedRowError("duplicate_keys", f"expected each key once, found {twice!r:.80} again")
    return found


def _float(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _constant(text)


def _constant(text: str) -> NoReturn:
    raise RejectedRowError("not_finite", f"expected finite numbers, found {text:.40}")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_CHARACTER = re.compile("[\ud800-\udfff]")


def _open(path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix.lower())
    file: IO[bytes] = path.open("rb") if opener is None else opener(path, "rb")
    return file


def _read_json_lines(file: LogFile, max_row_bytes: int) -> Iterator[LoggedRow]:
    with _open(file.path) as stream:
        number = 0
        while data := stream.readline(max_row_bytes + 1):
            number += 1
            if len(data) > max_row_bytes:
                _skip_line(stream, data)
                yield _refused(file, number, data[:_SHOWN], _too_long(max_row_bytes))
                continue
            if number == 1:
                data = _without_bom(data, file)
            if data.strip():
                yield _json_line(file, number, data)


def _skip_line(stream: IO[bytes], data: bytes) -> None:
    while data and not data.endswith(b"\n"):
        data = stream.readline(2**20)


def _without_bom(data: bytes, file: LogFile) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{file.name}: expected UTF-8, found UTF-16; convert the file")
    return data.removeprefix(b"\xef\xbb\xbf")


def _json_line(file: LogFile, number: int, data: bytes) -> LoggedRow:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _refused(file, number, data, RejectedRowError("bad_utf8", f"expected UTF-8, found {error.reason}"))
    try:
        return LoggedRow(file.name, number, parse_object(text), text.rstrip("\r\n"), None)
    except RejectedRowError as error:
        if error.reason == "json_invalid" and not text.endswith("\n"):
            error = RejectedRowError("json_truncated", "the last line ends in the middle; the writer was cut off")
        return _refused(file, number, data, error)


def _refused(file: LogFile, number: int, data: bytes | str, error: RejectedRowError) -> LoggedRow:
    text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
    return LoggedRow(file.name, number, None, text.rstrip("\r\n"), error)


def _too_long(max_row_bytes: int) -> RejectedRowError:
    return RejectedRowError("row_too_long", f"expected rows up to {max_row_bytes:,} bytes (max_row_bytes), found more")


def _read_json(file: LogFile, max_row_bytes: int) -> Iterator[LoggedRow]:
    """Rows of one JSON array of objects; a file that begins with an object holds one a line, whatever its name."""
    with _open(file.path) as stream:
        data = _without_bom(stream.read(), file)
    if data.lstrip()[:1] != b"[":
        yield from _read_json_lines(file, max_row_bytes)
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: expected UTF-8, found {error.reason} at byte {error.start}") from None
    for line, element in _elements(file, text):
        if len(element.encode()) > max_row_bytes:
            yield _refused(file, line, element[:_SHOWN], _too_long(max_row_bytes))
            continue
        try:
            yield LoggedRow(file.name, line, parse_object(element), element, None)
        except RejectedRowError as error:
            yield _refused(file, line, element, error)


def _elements(file: LogFile, text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each element of a JSON array."""
    # Where an element ends is found leniently, so that a fault in it costs one row and not the file.
    decoder = json.JSONDecoder()
    place, line = _skip_space(text, text.index("[") + 1), 1
    counted = 0
    while text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted = place
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            raise ValueError(
                f"{file.name}:{line}: expected an array of JSON objects, found a fault; repair it"
            ) from None
        yield line, text[place:end]
        place = _skip_space(text, end)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise ValueError(f"{file.name}: expected the array to go on or end after line {line}; the file is cut off")


def _skip_space(text: str, place: int) -> int:
    match = re.compile(r"\s*").match(text, place)
    return match.end() if match else place


def _read_separated(file: LogFile, max_row_bytes: int) -> Iterator[LoggedRow]:
    separator = "\t" if ".tsv" in file.path.name.lower() else ","
    csv.field_size_limit(sys.maxsize)
    with _open(file.path) as stream:
        # Bytes that are no UTF-8 come out as lone surrogates, and cost their row alone.
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header = [name.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}") for name in next(rows, [])]
        if len(set(header)) < len(header) or not header:
            raise ValueError(f"{file.name}: expected a header that names each column once, found {header}")
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield _refused(file, line, "", RejectedRowError("csv_invalid", f"expected CSV, found {error}"))
                continue
            if cells:
                yield _separated_row(file, line, header, cells, max_row_bytes)


def _separated_row(file: LogFile, line: int, header: list[str], cells: list[str], max_row_bytes: int) -> LoggedRow:
    text = canonical_json(cells)
    if _SURROGATE_CHARACTER.search(text):
        error = RejectedRowError("bad_utf8", "expected UTF-8, found other bytes")
        return _refused(file, line, text.encode("utf-8", "surrogateescape"), error)
    if len(cells) != len(header):
        error = RejectedRowError("wrong_number_of_cells", f"expected {len(header)} cells, found {len(cells)}")
        return _refused(file, line, text, error)
    # An empty cell is all that CSV has to say that there is no value.
    row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    return _table_row(file, line, row, max_row_bytes)


def _read_parquet(file: LogFile, max_row_bytes: int) -> Iterator[LoggedRow]:
    with pq.ParquetFile(file.path) as table:
        yield from _table_rows(file, table.iter_batches(batch_size=1024), max_row_bytes)


def _read_arrow(file: LogFile, max_row_bytes: int) -> Iterator[LoggedRow]:
    with pa.memory_map(str(file.path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches: Iterator[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        yield from _table_rows(file, batches, max_row_bytes)


def _table_rows(file: LogFile, batches: Iterator[pa.RecordBatch], max_row_bytes: int) -> Iterator[LoggedRow]:
    number = 0
    for batch in batches:
        if len(set(batch.schema.names)) < len(batch.schema.names):
            raise ValueError(f"{file.name}: expected each column once, found {batch.schema.names}")
        try:
            rows: list[dict[str, Any] | None] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_decoded(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            if row is None:
                yield _refused(file, number, "", RejectedRowError("bad_utf8", "expected UTF-8, found other bytes"))
            else:
                yield _table_row(file, number, row, max_row_bytes)


def _decoded(one_row: pa.RecordBatch) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = one_row.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


def _table_row(file: LogFile, number: int, row: dict[str, Any], max_row_bytes: int) -> LoggedRow:
    text = canonical_json(as_json_value(row))
    if len(text) > max_row_bytes:
        return _refused(file, number, text[:_SHOWN], _too_long(max_row_bytes))
    if "\\u0000" in text:
        try:
            _check_characters(as_json_value(row))
        except RejectedRowError as error:
            return _refused(file, number, text, error)
    return LoggedRow(file.name, number, row, text, None)


_Reader = Callable[[LogFile, int], Iterator[LoggedRow]]
_READERS: Mapping[str, _Reader] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".ipc": _read_arrow,
}
_TABLES = (_read_parquet, _read_arrow)


def _reader_of(path: Path) -> _Reader | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_compressed = bool(suffixes) and suffixes[-1] in _OPENERS
    if is_compressed:
        suffixes.pop()
    reader = _READERS.get(suffixes[-1]) if suffixes else None
    return None if is_compressed and reader in _TABLES else reader
