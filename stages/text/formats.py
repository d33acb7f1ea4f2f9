"""Formats of logs by name: recognised by the shape of each record, or named, or a function of one's own.

A format is a test whether a record has its shape, and a reader that takes it apart into items.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from stages.contracts.named_function import named_function
from stages.text import comparisons, exports, rankings, telemetry
from stages.text.exports import Item, Record
from stages.text.layouts import COLUMNS, EVENT_COLUMNS, as_json_value, parse_conversation
from stages.text.reasons import RejectedRowError

ROWS, MESSAGES = "rows", "messages"
"""Formats that are read by their columns: whatever a row has, and tables of messages that name those before them."""
FORMATS: Mapping[str, exports.Format] = {
    **exports.FORMATS,
    "opentelemetry": exports.Format(telemetry.is_telemetry, telemetry.read_telemetry),
    "label_studio": exports.Format(comparisons.is_label_studio, comparisons.read_label_studio),
    "reply_tree": exports.Format(exports.is_reply_tree, rankings.read_reply_tree),
    "summary_comparison": exports.Format(rankings.is_summary_comparison, rankings.read_summary_comparison),
    "summary_rating": exports.Format(rankings.is_summary_rating, rankings.read_summary_rating),
    "ranked_answers": exports.Format(rankings.is_ranked_list, rankings.read_ranked_list),
    "argilla": exports.Format(comparisons.is_argilla, comparisons.read_argilla),
}
NAMES = (ROWS, MESSAGES, *FORMATS)
_IDS = ("id", "answer_id")


class RecordReader:
    """Takes records apart.

    Args:
        name: of a format, or "package.module:function"; None recognises each record.
        with_regenerations: whether answers that were asked for again make pairs.

    Raises:
        ValueError: there is no such format or function.
    """

    def __init__(self, name: str | None, *, with_regenerations: bool = False) -> None:
        self.name = name
        self.with_regenerations = with_regenerations
        self._own: Callable[..., Iterable[Mapping[str, Any]]] | None = None
        if name is not None and name not in NAMES:
            self._own = named_function(name, where="ingestion.format", known=NAMES, arguments=["record"])

    def read(self, record: Record) -> tuple[str, list[Item]] | None:
        """The format and the items of a record; None for rows and messages, which are read by their columns."""
        name = self.name or _format_of(record)
        if name in (None, self.name) and (opened := _opened(record)) is not None:
            opened_name = self.name or _format_of(opened)
            if opened_name is not None and opened_name in FORMATS and FORMATS[opened_name].fits(opened):
                name, record = opened_name, opened
        if name is None or name in (ROWS, MESSAGES):
            return None
        again = list(exports.regenerations(record)) if self.with_regenerations else []
        try:
            if self._own is not None:
                return name, [_own_item(found) for found in self._own(dict(record))]
            if self.name is not None and not FORMATS[name].fits(record):
                raise RejectedRowError("unknown_layout", f"expected a record of the format {name}, found other keys")
            return name, [*FORMATS[name].read(record), *again]
        except RejectedRowError as error:
            # A conversation in which nothing is rated may still hold an answer that was asked for again.
            return name, again or [Item({}, error=error)]

    @property
    def may_be_messages(self) -> bool:
        """Whether rows may be messages that name those before them."""
        return self.name in (None, MESSAGES)


_PACKED = frozenset(
    {"data", "meta", "snapshot", "chat", "messages", "conversation", "conversations", "request", "response", "body"}
    | {"annotations", "fields", "responses", "answers", "completions", "info", "summaries", "scores", "attributes"}
)
"""Columns that tables hold as JSON."""


def _opened(record: Record) -> Record | None:
    """A record of a table with the objects that stand in its cells as JSON; None where there are none."""
    packed = {
        key: parse_conversation(value)
        for key in _PACKED & record.keys()
        if isinstance(value := record[key], str) and value.lstrip()[:1] in ("{", "[")
    }
    return {**record, **packed} if packed else None


def _own_item(found: Mapping[str, Any]) -> Item:
    """What a function of one's own gives: cells by our names, `id` of an answer, `answer_id` of a vote on one."""
    known = {*COLUMNS, *EVENT_COLUMNS}
    cells = {str(name): value for name, value in found.items() if name in known}
    source = {str(name): as_json_value(value) for name, value in found.items() if name not in known.union(_IDS)}
    own, target = found.get("id"), found.get("answer_id")
    return Item(
        cells,
        source,
        own_ids=() if own is None else (f"answer:{own}",),
        targets=() if target is None else (f"answer:{target}",),
    )


def _format_of(record: Record) -> str | None:
    # What is no list and no object in it is told by its keys alone.
    is_flat = not any(isinstance(value, Mapping | list) for value in record.values())
    return _flat_format(frozenset(record)) if is_flat else next(_fitting(record), None)


@functools.lru_cache(maxsize=4096)
def _flat_format(keys: frozenset[str]) -> str | None:
    return next(_fitting(dict.fromkeys(keys)), None)


def _fitting(record: Record) -> Iterator[str]:
    return (name for name, found in FORMATS.items() if found.fits(record))
