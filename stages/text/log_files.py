"""Rows of feedback logs, one by one, each with the file and line where it stands.

JSON lines, JSON, CSV, TSV, Parquet and Arrow; text also compressed. What is wrong with one row costs that row alone
and is said of it; what is wrong with a file, such as a table cut in the middle, is an error. The lines of a file are
counted beside its rows, so that a row that swallows others is noticed.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.rows import canonical_json
from stages.text.json_stream import MAX_KEYS, arrays_of_objects, elements
from stages.text.json_tables import JsonTable, table_in
from stages.text.layouts import as_json_value, without_nulls
from stages.text.reasons import RejectedRowError
from stages.text.separated import SeparatedTable

MAX_DEPTH = 64
MAX_ROW_BYTES = 8 * 2**20
STREAMED_BYTES = 64 * 2**20
"""From this length on a JSON document is read object by object, and not at once."""
_SHOWN = 2000
_CR_ENDS = "lines that end with carriage returns"
_NO_UTF8 = "expected UTF-8, found other bytes; ingestion.encoding names another encoding, such as cp1252"
_ROW_KEYS = frozenset(
    {"prompt", "completion", "chosen", "rejected", "messages", "conversations", "conversation", "instruction", "input"}
    | {
        "messagesTree",
        "question",
        "output",
        "inputs",
        "outputs",
        "request",
        "response",
        "choices",
        "chat",
        "snapshot",
        "history",
    }
)
"""Keys of an object that is a row itself, and doesn't hold rows below a key."""


def _open_zstandard(path: Path, _mode: str) -> IO[bytes]:
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd"))


_OPENERS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
# Tools that fetch files may unpack them and leave the name.
_MAGIC = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ", ".zst": b"\x28\xb5\x2f\xfd"}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException)


class LogFile(NamedTuple):
    """A file of a log."""

    path: Path
    name: str
    """What it is called in counts and rejects; the same wherever the log lies on a machine."""


@dataclass
class FileTally:
    """What was read of a file; filled in while it is read."""

    form: str = ""
    """What it holds and how, such as "CSV, separator semicolon"."""
    rows: int = 0
    lines: int | None = None
    """Lines of a text file; None of a table, and of JSON that isn't written line by line."""
    blank_lines: int = 0
    header_lines: int = 0
    row_lines: int = 0
    """Lines that rows stand on, those that can't be read included."""

    def as_json(self) -> dict[str, Any]:
        """For metrics."""
        lines = {"lines": self.lines, "blank": self.blank_lines, "header": self.header_lines, "in_rows": self.row_lines}
        return {"form": self.form, "rows": self.rows, **(lines if self.lines is not None else {})}


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


class _Reading(NamedTuple):
    """How a file is read."""

    max_row_bytes: int
    encoding: str | None
    tally: FileTally


def read_log(
    files: Sequence[LogFile],
    *,
    max_row_bytes: int = MAX_ROW_BYTES,
    encoding: str | None = None,
    tallies: dict[str, FileTally] | None = None,
) -> Iterator[LoggedRow]:
    """All rows of all files, in order, also those that can't be read.

    Args:
        files: the files of the log.
        max_row_bytes: longest row of a text file; a longer one is refused unread.
        encoding: of text files; None takes UTF-8, or UTF-16 where a file is written in it.
        tallies: takes in what was read of each file, by its name.

    Raises:
        ValueError: a file is of an unknown kind, damaged, or its lines don't add up to its rows.
    """
    for file in files:
        reader = _reader_of(file.path)
        if reader is None:
            raise ValueError(
                f"{file.name}: expected a log of a known kind ({known_suffixes()}), found {file.path.name}"
            )
        tally = FileTally()
        if tallies is not None:
            tallies[file.name] = tally
        try:
            for logged in reader(file, _Reading(max_row_bytes, encoding, tally)):
                tally.rows += 1
                yield logged
        except (*_DAMAGED, OSError) as error:
            message = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{file.name}: damaged or cut off after {tally.rows:,} rows ({message}); fetch the file again"
            ) from None
        _check_lines(file, tally)


def _check_lines(file: LogFile, tally: FileTally) -> None:
    accounted = tally.blank_lines + tally.header_lines + tally.row_lines
    if tally.lines is not None and tally.lines != accounted:
        raise ValueError(
            f"{file.name}: expected every line in a row, found {tally.lines:,} lines and {accounted:,} read"
        )


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
        hint = "; a list doesn't say what its cells are, so write objects, or CSV with a header"
        found = f"{type(value).__name__}{hint if isinstance(value, list) else ''}"
        raise RejectedRowError("not_an_object", f"expected a JSON object, found {found}")
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


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] in _WRAPPED:
        return pairs[0][1]
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RejectedRowError("duplicate_keys", f"expected each key once, found {twice!r:.80} again")
    return found


_WRAPPED = frozenset({"$date", "$oid", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal"})
"""Keys of objects that MongoDB writes in place of a value that JSON has no type for."""


def _float(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _constant(text)


def _constant(text: str) -> NoReturn:
    raise RejectedRowError("not_finite", f"expected finite numbers, found {text:.40}")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_CHARACTER = re.compile("[\ud800-\udfff]")


def _open(file: LogFile, reading: _Reading) -> IO[bytes]:
    """The text of a file as UTF-8."""
    suffix = file.path.suffix.lower()
    opener = _OPENERS.get(suffix)
    stream: IO[bytes] = file.path.open("rb")
    if opener is not None and isinstance(stream, io.BufferedReader):
        is_packed = stream.peek(8).startswith(_MAGIC[suffix])
        if is_packed:
            stream.close()
            stream = opener(file.path, "rb")
        else:
            reading.tally.form = f"not packed in spite of {suffix}"
    head = stream.peek(4)[:4] if hasattr(stream, "peek") else b""
    encoding = reading.encoding or _encoding_of(head)
    if encoding is None:
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        return _with_line_feeds(stream, reading)
    with stream:
        data = stream.read()
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{file.name}: expected text in {encoding}, found {error}; see ingestion.encoding") from None
    reading.tally.form = encoding.upper()
    data = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").encode("utf-8", "surrogatepass")
    return _with_line_feeds(io.BufferedReader(io.BytesIO(data)), reading)


def _with_line_feeds(stream: IO[bytes], reading: _Reading) -> IO[bytes]:
    """Text with line feeds where lines end with carriage returns alone, as those of Excel for the Mac do."""
    head = stream.peek(_SHOWN) if hasattr(stream, "peek") else b""
    if b"\r" not in head.partition(b"\n")[0][:-1]:
        return stream
    with stream:
        data = stream.read()
    if b"\r\n" not in data:
        data = data.replace(b"\r", b"\n")
        if _CR_ENDS not in reading.tally.form:
            _describe(reading, _CR_ENDS)
    return io.BytesIO(data)


def _encoding_of(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) == 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return None


def _describe(reading: _Reading, form: str) -> None:
    reading.tally.form = f"{form}, {reading.tally.form}" if reading.tally.form else form


def _read_json_lines(file: LogFile, reading: _Reading) -> Iterator[LoggedRow]:
    with _open(file, reading) as stream:
        first = stream.readline(STREAMED_BYTES)
        is_alone = len(first) < STREAMED_BYTES and not stream.read(1)
        # A log that ends behind a bracket is one that its writer left.
        is_document = _begins_document(first[:_SHOWN].strip()) and not (is_alone and len(first.strip()) == 1)
    if is_document or (is_alone and _table(first) is not None):
        yield from _read_json(file, reading)
        return
    with _open(file, reading) as stream:
        _describe(reading, "JSON lines")
        yield from _json_lines(file, stream, reading)


def _begins_document(first: bytes) -> bool:
    """Whether a first line is that of an array, or of an object over several lines, whatever the file is called."""
    return first in (b"[", b"{") or re.match(rb"\[\s*\{", first) is not None


def _json_lines(file: LogFile, stream: IO[bytes], reading: _Reading) -> Iterator[LoggedRow]:
    tally, limit = reading.tally, reading.max_row_bytes
    number = 0
    while data := stream.readline(limit + 1):
        tally.lines = number = number + 1
        if len(data) > limit:
            _skip_line(stream, data)
            tally.row_lines += 1
            yield _refused(file, number, data[:_SHOWN], _too_long(limit))
        elif data.strip():
            tally.row_lines += 1
            yield _json_line(file, number, data)
        else:
            tally.blank_lines += 1


def _skip_line(stream: IO[bytes], data: bytes) -> None:
    while data and not data.endswith(b"\n"):
        data = stream.readline(2**20)


def _json_line(file: LogFile, number: int, data: bytes) -> LoggedRow:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _refused(file, number, data, RejectedRowError("bad_utf8", f"{_NO_UTF8}: {error.reason}"))
    # Lines that were cut out of an array end with its comma.
    row = text.rstrip().removesuffix(",") if text.rstrip().endswith("},") else text
    try:
        return LoggedRow(file.name, number, parse_object(row), text.rstrip("\r\n"), None)
    except RejectedRowError as error:
        if error.reason == "json_invalid" and not text.endswith("\n"):
            error = RejectedRowError("json_truncated", "the last line ends in the middle; the writer was cut off")
        return _refused(file, number, data, error)


def _refused(file: LogFile, number: int, data: bytes | str, error: RejectedRowError) -> LoggedRow:
    text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
    return LoggedRow(file.name, number, None, text.rstrip("\r\n"), error)


def _too_long(max_row_bytes: int) -> RejectedRowError:
    return RejectedRowError("row_too_long", f"expected rows up to {max_row_bytes:,} bytes (max_row_bytes), found more")


def _read_json(file: LogFile, reading: _Reading) -> Iterator[LoggedRow]:
    """Rows of a JSON array of objects, or of arrays below the keys of one object; else an object on each line."""
    with _open(file, reading) as stream:
        data = stream.read(STREAMED_BYTES)
        is_long = len(data) == STREAMED_BYTES
        if not (is_long and _is_document(data)):
            data += stream.read()
            is_long = False
    if is_long:
        yield from _stream_json(file, reading, is_array=data.lstrip()[:1] == b"[")
        return
    if (table := _table(data)) is not None:
        _describe(reading, f"JSON, {table.form}")
        for number, row in enumerate(table.rows, 1):
            yield _json_element(file, number, canonical_json(row), reading)
    else:
        yield from _read_documents(file, data, reading)


def _read_documents(file: LogFile, data: bytes, reading: _Reading) -> Iterator[LoggedRow]:
    is_array = data.lstrip()[:1] == b"["
    is_one = not is_array and _is_one_object(data)
    if not (is_array or is_one or data.strip().partition(b"\n")[0].strip() == b"{"):
        _describe(reading, "JSON lines")
        yield from _json_lines(file, io.BytesIO(data), reading)
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: {_NO_UTF8}: {error.reason} at byte {error.start}") from None
    for line, element in _rows_below(file, text, reading) if is_one else _documents(file, text):
        yield _json_element(file, line, element, reading)
    if not is_one:
        _describe(reading, "JSON" if is_array else "JSON, objects one behind the other")


def _rows_below(file: LogFile, text: str, reading: _Reading) -> Iterator[tuple[int, str]]:
    """Line and text of the rows below the keys of one object, or of that object."""
    tables = _tables_below(text)
    if not tables:
        _describe(reading, "JSON, one object")
        yield 1, text.strip()
        return
    _describe(reading, "JSON, rows below " + " and ".join(tables))
    for place in tables.values():
        yield from _elements(file, text, place)


def _is_document(head: bytes) -> bool:
    """Whether what a file begins with is an array or an object over several lines, and no object on each line."""
    first = head.lstrip()
    return first[:1] == b"[" or not first.partition(b"\n")[0].rstrip().endswith(b"}")


def _stream_json(file: LogFile, reading: _Reading, *, is_array: bool) -> Iterator[LoggedRow]:
    """The same of a document that is too long to be held: a fault ends it, and rows have numbers in place of lines."""
    tally = reading.tally
    try:
        with _open(file, reading) as stream:
            tables = [""] if is_array else arrays_of_objects(stream, row_keys=_ROW_KEYS)
        if not tables:
            raise ValueError(f"{file.name}: expected an array of rows in a long document, found none; write JSON lines")
        tally.form = ""
        for place in tables:
            with _open(file, reading) as stream:
                for value, repeated in elements(stream, place):
                    yield _streamed_row(file, tally.rows + 1, value, repeated, reading)
    except ijson.JSONError as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file.name}: expected JSON, found a fault ({message}); repair it, or write JSON lines"
        ) from None
    _describe(reading, "JSON, streamed" + ", rows below " * bool(any(tables)) + " and ".join(filter(None, tables)))


def _streamed_row(file: LogFile, number: int, value: Any, repeated: str | None, reading: _Reading) -> LoggedRow:
    element = canonical_json(value)
    if repeated is not None:
        error = RejectedRowError("duplicate_keys", f"expected each key once, found {repeated!r:.80} again")
        return _refused(file, number, element, error)
    return _json_element(file, number, element, reading)


def _json_element(file: LogFile, line: int, element: str, reading: _Reading) -> LoggedRow:
    if len(element.encode("utf-8", "surrogatepass")) > reading.max_row_bytes:
        return _refused(file, line, element[:_SHOWN], _too_long(reading.max_row_bytes))
    try:
        return LoggedRow(file.name, line, parse_object(element), element, None)
    except RejectedRowError as error:
        return _refused(file, line, element, error)


def _table(data: bytes) -> JsonTable | None:
    """The table that a file's only object is, with null for NaN, which pandas may write for nothing."""
    if data.lstrip()[:1] != b"{":
        return None
    try:
        value = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return table_in(value, row_keys=_ROW_KEYS) if isinstance(value, dict) else None


def _is_one_object(data: bytes) -> bool:
    """Whether a file is one object over several lines, or one that holds rows below a key."""
    first, _, rest = data.strip().partition(b"\n")
    if rest.strip() and first.strip().endswith(b"}"):
        return False
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (bool(rest.strip()) or bool(_tables_below(data.decode("utf-8", "replace"))))


def _tables_below(text: str) -> dict[str, int]:
    """Of an object that is no row itself, the keys under which arrays of objects stand, and where these begin."""
    found: dict[str, int] = {}
    objects = [("", text.index("{"))]
    decoder = json.JSONDecoder()
    while objects:
        prefix, start = objects.pop(0)
        value, _ = decoder.raw_decode(text, start)
        if _ROW_KEYS & set(value):
            continue
        for key, item, place in _items(decoder, text, start, value):
            if isinstance(item, list) and any(isinstance(element, dict) for element in item):
                found[prefix + key] = place
            elif isinstance(item, dict) and item and prefix.count(".") < MAX_KEYS - 1:
                objects.append((f"{prefix}{key}.", place))
    return found


def _items(decoder: json.JSONDecoder, text: str, start: int, value: dict[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """The keys and values of the object that begins at a place, and where each value begins."""
    place = start + 1
    for key, item in value.items():
        _, end = decoder.raw_decode(text, _skip_space(text, place))
        place = _skip_space(text, text.index(":", end) + 1)
        yield key, item, place
        _, end = decoder.raw_decode(text, place)
        place = _skip_space(text, end) + 1


def _documents(file: LogFile, text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each row of arrays and objects that stand one behind the other, as pages of an export do."""
    decoder = json.JSONDecoder()
    place = _skip_space(text, 0)
    while place < len(text):
        if text[place] == "[":
            place = yield from _elements(file, text, place)
        else:
            line = 1 + text.count("\n", 0, place)
            try:
                _, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError):
                raise ValueError(f"{file.name}:{line}: expected JSON objects, found a fault; repair it") from None
            yield line, text[place:end]
            place = end
        place = _skip_space(text, place)


def _elements(file: LogFile, text: str, start: int) -> Generator[tuple[int, str], None, int]:
    """Line and text of each element of the JSON array that begins at a place; returns where it ends."""
    # Where an element ends is found leniently, so that a fault in it costs one row and not the file.
    decoder = json.JSONDecoder()
    place, line = _skip_space(text, start + 1), 1
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
    return place + 1


def _skip_space(text: str, place: int) -> int:
    match = re.compile(r"\s*").match(text, place)
    return match.end() if match else place


def _read_separated(file: LogFile, reading: _Reading) -> Iterator[LoggedRow]:
    prefers = "\t" if ".tsv" in file.path.name.lower() else ","
    with _open(file, reading) as stream:
        # Bytes that are no UTF-8 come out as lone surrogates, and cost their row alone.
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        table = SeparatedTable(lines, prefers=prefers, max_length=reading.max_row_bytes)
        header, tally = table.header, reading.tally
        _describe(reading, f"CSV, {table.dialect}")
        _check_header(file, table)
        for record in table.records():
            tally.row_lines += record.num_lines
            if record.error is not None:
                yield _refused(file, record.line, record.text.encode("utf-8", "surrogateescape"), record.error)
            else:
                yield _separated_row(file, record.line, header, record.cells, reading.max_row_bytes)
        tally.lines, tally.blank_lines, tally.header_lines = table.num_lines, table.num_blank, table.num_header_lines


def _check_header(file: LogFile, table: SeparatedTable) -> None:
    header, size = table.header, table.size_below_title()
    if len(set(header)) < len(header) or not header or size:
        cells = f"and rows of {size} cells" if size else "above its rows"
        raise ValueError(
            f"{file.name}: expected a header that names each column once, found {header} {cells}; take away the lines "
            "above the header, or write one"
        )
    if cells_of_a_row := table.values_in_header():
        raise ValueError(
            f"{file.name}: expected a header, found what reads like a row ({', '.join(cells_of_a_row)}); write the "
            "names of the columns above it, such as prompt,completion,label"
        )


def _separated_row(file: LogFile, line: int, header: list[str], cells: list[str], max_row_bytes: int) -> LoggedRow:
    text = canonical_json(cells)
    if _SURROGATE_CHARACTER.search(text):
        error = RejectedRowError("bad_utf8", _NO_UTF8)
        return _refused(file, line, text.encode("utf-8", "surrogateescape"), error)
    if len(cells) != len(header):
        error = RejectedRowError("wrong_number_of_cells", f"expected {len(header)} cells, found {len(cells)}")
        return _refused(file, line, text, error)
    # An empty cell is all that CSV has to say that there is no value.
    row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    return _table_row(file, line, row, max_row_bytes)


def _read_parquet(file: LogFile, reading: _Reading) -> Iterator[LoggedRow]:
    with pq.ParquetFile(file.path) as table:
        _describe(reading, "Parquet")
        yield from _table_rows(file, table.iter_batches(batch_size=1024), reading.max_row_bytes)


def _read_arrow(file: LogFile, reading: _Reading) -> Iterator[LoggedRow]:
    with pa.memory_map(str(file.path)) as source:
        _describe(reading, "Arrow")
        try:
            reader = pa.ipc.open_file(source)
            batches: Iterator[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        yield from _table_rows(file, batches, reading.max_row_bytes)


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
                yield _refused(file, number, "", RejectedRowError("bad_utf8", _NO_UTF8))
            else:
                own = {name: without_nulls(value) for name, value in row.items()}
                yield _table_row(file, number, own, max_row_bytes)


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


_Reader = Callable[[LogFile, _Reading], Iterator[LoggedRow]]
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
