"""Tables as text, such as CSV: how a file separates and quotes its cells is found out and said.

A quote that is opened by mistake swallows lines until the next quote of the file. Such a line is refused on its own,
with its number, and reading goes on behind it.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from stages.text.reasons import RejectedRowError

SEPARATORS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE_LINES = 400
_FEW_VALUES = 12
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_SHORT = re.compile(r"\S{0,24}")


class Dialect(NamedTuple):
    """How a file separates and quotes cells."""

    separator: str = ","
    quote: str = '"'
    has_backslashes: bool = False
    """Whether a quote inside quotes has a backslash before it, rather than a second quote."""

    def __str__(self) -> str:
        quotes = "" if self.quote == '"' else ", quote '"
        return f"separator {_NAMES[self.separator]}{quotes}{', backslash escapes' if self.has_backslashes else ''}"


class Record(NamedTuple):
    """Lines of a table that make up a row."""

    line: int
    """On which it begins, from 1."""
    num_lines: int
    text: str
    cells: list[str]
    error: RejectedRowError | None
    """Why it can't be read."""


class _Columns(NamedTuple):
    """What is known of the columns of a table, to tell a row from a line inside a cell."""

    size: int
    short: dict[int, frozenset[str] | None]
    """By column, where all its values are short words, these values if they are few, else None."""

    def looks_like_row(self, cells: Sequence[str] | None) -> bool:
        if cells is None or len(cells) != self.size:
            return False
        return all(_SHORT.fullmatch(cells[i]) and (few is None or cells[i] in few) for i, few in self.short.items())


def find_dialect(lines: Sequence[str], *, prefers: str = ",") -> Dialect:
    """How a file separates and quotes its cells, judged by its first lines.

    Args:
        lines: first lines of the file, its header included.
        prefers: separator to take where several fit as well.
    """
    head = next((line.strip("\r\n") for line in lines if line.strip()), "")
    body = "".join(lines)
    quote = "'" if re.fullmatch(r"'[^']*'([,;\t|]'[^']*')+", head) else '"'
    escaped = re.search(r'[^\\,;\t|\n]\\"[^,;\t|\r\n]', body) is not None
    doubled = re.search(r'[^,;\t|\n]""[^,;\t|\r\n]', body) is not None
    found = [Dialect(separator, quote, escaped and not doubled) for separator in SEPARATORS]
    return max(found, key=lambda dialect: (_fit(head, lines, dialect), dialect.separator == prefers))


def _fit(head: str, lines: Sequence[str], dialect: Dialect) -> tuple[bool, float, int]:
    size = len(split_cells(head, dialect) or [""])
    if size < 2:
        return False, 0.0, 1
    cut = [split_cells(line.rstrip("\r\n"), dialect) for line in lines if line.strip()]
    return True, round(sum(cells is not None and len(cells) == size for cells in cut) / len(cut), 1), size


def split_cells(text: str, dialect: Dialect) -> list[str] | None:
    """The cells of a row; None if a quote is open at its end.

    A quote that stands inside quotes and neither ends the cell nor is doubled is taken as it is.
    """
    if dialect.quote not in text:
        return text.split(dialect.separator)
    cells, place = [], 0
    while True:
        quoted = text[place:].lstrip(" ").startswith(dialect.quote)
        if quoted:
            found = _quoted(text, text.index(dialect.quote, place) + 1, dialect)
            if found is None:
                return None
            cell, end = found
        else:
            end = text.find(dialect.separator, place)
            end = len(text) if end < 0 else end
            cell = text[place:end]
        cells.append(cell)
        if end >= len(text):
            return cells
        place = end + 1


def is_strict(text: str, dialect: Dialect) -> bool:
    """Whether all quotes of a row are where they belong: around whole cells, and inside these doubled or escaped."""
    quote, separator = re.escape(dialect.quote), re.escape(dialect.separator)
    plain = rf"[^{quote}\\]*" if dialect.has_backslashes else rf"[^{quote}]*"
    escaped = rf"(?:\\.|{quote}{quote})" if dialect.has_backslashes else rf"{quote}{quote}"
    cell = rf"(?: *{quote}{plain}(?:{escaped}{plain})*{quote}|[^{quote}{separator}]*)"
    return re.fullmatch(rf"{cell}(?:{separator}{cell})*", text, re.DOTALL) is not None


def _quoted(text: str, start: int, dialect: Dialect) -> tuple[str, int] | None:
    parts: list[str] = []
    while True:
        end = text.find(dialect.quote, start)
        if end < 0:
            return None
        behind = text[end + 1 : end + 2]
        if dialect.has_backslashes and _is_escaped(text, end):
            parts += [text[start : end - 1], dialect.quote]
            start = end + 1
        elif behind == dialect.quote:
            parts += [text[start:end], dialect.quote]
            start = end + 2
        elif behind in ("", dialect.separator):
            return "".join([*parts, text[start:end]]), end + 1
        else:
            parts.append(text[start : end + 1])
            start = end + 1


def _is_escaped(text: str, place: int) -> bool:
    length = len(text[:place]) - len(text[:place].rstrip("\\"))
    return length % 2 == 1


class SeparatedTable:
    """The header and records of a table.

    Args:
        lines: lines of the file with their ends.
        prefers: separator to take where several fit as well.
        max_length: most characters of a row.
    """

    def __init__(self, lines: Iterable[str], *, prefers: str, max_length: int) -> None:
        self.dialect = Dialect(prefers)
        self.header: list[str] = []
        self.num_lines = self.num_blank = self.num_header_lines = 0
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()
        self._max_length = max_length
        self._read_header(prefers)
        self._columns = self._known_columns()

    def _read_header(self, prefers: str) -> None:
        self._look_ahead(_SAMPLE_LINES)
        # Excel says it in a line of its own before the header.
        if self._ahead and (said := re.fullmatch(r"sep=([,;\t|])\s*", self._ahead[0])):
            self._next_line()
            self.num_header_lines = 1
            self.dialect = find_dialect(list(self._ahead), prefers=said[1])
        else:
            self.dialect = find_dialect(list(self._ahead), prefers=prefers)
        while self._look_ahead(1) and not self._ahead[0].strip():
            self._next_line()
            self.num_blank += 1
        if self._look_ahead(1):
            record = self._record()
            self.header = [cell.strip() for cell in record.cells]
            self.num_header_lines += record.num_lines
            if self.header and not self.header[0]:
                # What pandas writes above its index.
                self.header[0] = "index"

    def size_below_title(self) -> int | None:
        """How many cells rows have below a header that is one text, such as a title; None below another header."""
        if sum(map(bool, self.header)) != 1:
            return None
        sizes = Counter(len(cells or []) for cells in self._cut_ahead())
        size = max(sizes, key=lambda size: (sizes[size], size), default=0)
        return size if size > 1 and sizes[size] >= 0.9 * sizes.total() else None

    def values_in_header(self) -> list[str]:
        """Cells of the header that are values of their column, as those of a row are where there is no header."""
        whole = [cells for cells in self._cut_ahead() if cells is not None and len(cells) == len(self.header)]
        found = []
        for i, cell in enumerate(self.header):
            values = Counter(cells[i] for cells in whole)
            is_of_few = len(values) <= _FEW_VALUES and values[cell] > 1
            are_numbers = _NUMBER.fullmatch(cell) and cell != str(i) and all(map(_NUMBER.fullmatch, values))
            if cell and (is_of_few or (values and are_numbers)):
                found.append(cell)
        return found

    def _cut_ahead(self) -> list[list[str] | None]:
        return [split_cells(line.rstrip("\r\n"), self.dialect) for line in self._ahead if line.strip()]

    def records(self) -> Iterator[Record]:
        """The records below the header."""
        while self._look_ahead(1):
            if not self._ahead[0].strip():
                self._next_line()
                self.num_blank += 1
            else:
                yield self._record()

    def _record(self) -> Record:
        """The record that begins on the next line."""
        line = self.num_lines + 1
        lines, cells = self._lines_of_record()
        if cells is not None and not self._swallows(lines):
            for _ in lines:
                self._next_line()
            return Record(line, len(lines), "".join(lines).rstrip("\r\n"), cells, None)
        text = self._next_line().rstrip("\r\n")
        what = (
            "isn't closed" if cells is None else f"would be closed on line {line + len(lines) - 1}, behind other rows"
        )
        return Record(
            line,
            1,
            text,
            [],
            RejectedRowError("csv_invalid", f"a quote that opens on line {line} {what}; mend the line"),
        )

    def _lines_of_record(self) -> tuple[list[str], list[str] | None]:
        lines: list[str] = []
        length = 0
        while length <= self._max_length and self._look_ahead(len(lines) + 1):
            lines.append(self._ahead[len(lines)])
            length += len(lines[-1])
            # A cell that is open stays so until a line with another quote.
            if len(lines) == 1 or self.dialect.quote in lines[-1]:
                cells = split_cells("".join(lines).rstrip("\r\n"), self.dialect)
                if cells is not None:
                    return lines, cells
        return lines, None

    def _swallows(self, lines: Sequence[str]) -> bool:
        """Whether lines inside a record are rows of their own."""
        if len(lines) < 2 or not self.header:
            return False
        inner = [line.rstrip("\r\n") for line in lines[1:]]
        if is_strict("".join(lines).rstrip("\r\n"), self.dialect):
            # All its quotes match, so a line inside it with other quotes than a row's is text.
            inner = [line if is_strict(line, self.dialect) else "" for line in inner]
        are_rows = [self._columns.looks_like_row(split_cells(line, self.dialect)) for line in inner]
        if self._columns.short:
            return any(are_rows)
        return len(are_rows) > 1 and all(are_rows[:-1])

    def _known_columns(self) -> _Columns:
        size = len(self.header)
        whole = [cells for cells in self._cut_ahead() if cells is not None and len(cells) == size]
        short: dict[int, frozenset[str] | None] = {}
        for i in range(size):
            counts = Counter(cells[i] for cells in whole)
            # Lines inside cells of several lines may pass for rows here, so one in ten values may be another.
            num_short = sum(count for value, count in counts.items() if _SHORT.fullmatch(value))
            if whole and num_short >= 0.9 * len(whole):
                has_few = len(whole) >= 20 and len(counts) <= _FEW_VALUES
                short[i] = frozenset(counts) if has_few else None
        return _Columns(size, short)

    def _look_ahead(self, size: int) -> bool:
        while len(self._ahead) < size:
            line = next(self._lines, None)
            if line is None:
                return False
            self._ahead.append(line)
        return True

    def _next_line(self) -> str:
        self.num_lines += 1
        return self._ahead.popleft()
