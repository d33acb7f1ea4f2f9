"""Writes the artifacts `feedback_events` and `ledger` when it is known which votes count.

Until then entries wait in a file, for the events of a log don't fit into memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import ArtifactWriter
from stages.contracts.feedback_events import FEEDBACK_EVENTS
from stages.contracts.ledger import LEDGER
from stages.text.feedback_log import Entry, FeedbackLog

_WAITING_ROWS = 4096
_LEDGER_COLUMNS = [field.name for field in LEDGER.fields]
_EVENT_COLUMNS = [field.name for field in FEEDBACK_EVENTS.fields]
_OWN = [name for name in _EVENT_COLUMNS if name not in _LEDGER_COLUMNS]
_own_of = itemgetter(*_OWN)
_NOTHING = (None,) * len(_OWN)
_WAITING = pa.schema([*LEDGER.fields, *(field for field in FEEDBACK_EVENTS.fields if field.name in _OWN)])
_WAITING = pa.schema([field.with_nullable(True) for field in _WAITING])


@dataclass
class EventCounts:
    """What became of the records and events of a log."""

    fates: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    """Events by file."""
    examples: dict[str, str] = field(default_factory=dict)
    """By reason, the first one refused."""

    @property
    def num_events(self) -> int:
        """Events, those that can't be read included; records that have none aren't counted."""
        return sum(count for fate, count in self.fates.items() if fate not in ("joined", "left_out"))

    @property
    def num_refused(self) -> int:
        """Events refused or retracted."""
        return self.fates["refused"] + self.fates["retracted"]

    def add(self, ledger: pa.Table) -> None:
        """Take in rows of the ledger."""
        for fate, file in zip(ledger["fate"].to_pylist(), ledger["file"].to_pylist(), strict=True):
            self.fates[fate] += 1
            self.files[file] += fate not in ("joined", "left_out")
        refused = ledger.filter(pc.is_valid(ledger["reason"])).select(["reason", "file", "line", "detail"])
        for row in refused.to_pylist():
            self.reasons[row["reason"]] += 1
            self.examples.setdefault(row["reason"], f"{row['file']}:{row['line']}: {row['detail']}")

    def summary(self) -> str:
        """The commonest reasons and an example of the first, for a message; empty where nothing is refused."""
        common = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in common)
        return f"commonest reasons: {listed}; for example {self.examples[common[0][0]]}" if common else ""


def write_events(
    log: FeedbackLog,
    events: Path,
    ledger: Path,
    *,
    half_life_days: float | None,
    rater_cap: float | None,
) -> EventCounts:
    """Read a log, decide which of its votes count, and write what it holds and what became of it.

    Args:
        log: what to read.
        events: `feedback_events` artifact to write.
        ledger: `ledger` artifact to write.
        half_life_days: age at which a vote weighs half as much; None weighs all ages alike.
        rater_cap: what the votes of one rater weigh together at most; None for no limit.

    Raises:
        ValueError: a file is damaged, or the log can be read in two ways.
    """
    waiting = log.store.folder / "entries.arrow"
    _wait(log.entries(), waiting)
    log.resolution.resolve(half_life_days=half_life_days, rater_cap=rater_cap)
    is_weighed = log.has_weights or log.vote_weight == "counted" or half_life_days is not None or rater_cap is not None
    counts = EventCounts()
    fates = _Fates(log.resolution.fates())
    with ArtifactWriter(events, FEEDBACK_EVENTS) as event_writer, ArtifactWriter(ledger, LEDGER) as ledger_writer:
        for batch in _batches(waiting):
            found = _decided(batch, fates, is_weighed=is_weighed)
            event_writer.write(found.filter(pc.is_valid(found["event"])).select(_EVENT_COLUMNS))
            accounted = found.select(_LEDGER_COLUMNS)
            ledger_writer.write(accounted)
            counts.add(accounted)
    return counts


def _wait(entries: Iterable[Entry], path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _WAITING, options=options) as stream:
        rows: list[tuple[Any, ...]] = []
        for entry in entries:
            rows.append(_values(entry))
            if len(rows) >= _WAITING_ROWS:
                stream.write_table(_table(rows))
                rows = []
        stream.write_table(_table(rows))


def _values(entry: Entry) -> tuple[Any, ...]:
    event, error, logged = entry.event or {}, entry.error, entry.logged
    reason, detail = (error.reason, error.detail) if error else (None, None)
    about = (logged.file, logged.line, event.get("event"), entry.fate, reason, detail, logged.text)
    return (*about, *(_own_of(event) if event else _NOTHING))


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(_WAITING)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _WAITING, strict=True)], schema=_WAITING
    )


def _batches(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pa.Table.from_batches([batch])


class _Fates:
    """What was decided, in the order of the events."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches, self._left = batches, None

    def take(self, count: int) -> pa.Table:
        """The next ones."""
        held: list[pa.Table] = [] if self._left is None else [self._left]
        while sum(table.num_rows for table in held) < count:
            held.append(pa.Table.from_batches([next(self._batches)]))
        table = pa.concat_tables(held) if held else _WAITING.empty_table()
        self._left = table.slice(count)
        return table.slice(0, count)


def _decided(batch: pa.Table, fates: _Fates, *, is_weighed: bool) -> pa.Table:
    """Entries with what became of them."""
    is_event = batch["event"].is_valid()
    found = fates.take(pc.sum(is_event).as_py() or 0)
    # Where the n-th event stands in the batch; null where there is none.
    place = pc.if_else(is_event, pc.subtract(pc.cumulative_sum(is_event.cast(pa.int64())), 1), None)
    found = found.take(place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place)
    fate = pc.coalesce(batch["fate"], found["fate"])
    is_used = pc.equal(fate, "used")
    is_voted = pc.and_(is_used, pc.is_in(batch["layout"], pa.array(["unpaired", "pairs"])))
    is_disputed = pc.and_(is_voted, pc.greater(found["disagree"], 0))
    changed = {
        "fate": fate,
        "reason": pc.coalesce(batch["reason"], found["reason"]),
        "detail": pc.coalesce(batch["detail"], found["detail"]),
        "row": pc.if_else(pc.is_in(fate, pa.array(["refused", "retracted"])), batch["row"], None),
        "weight": pc.if_else(is_voted, found["weight"], batch["weight"]) if is_weighed else batch["weight"],
        "agree": pc.if_else(is_disputed, found["agree"], None),
        "disagree": pc.if_else(is_disputed, found["disagree"], None),
    }
    for name, column in changed.items():
        index = batch.schema.get_field_index(name)
        batch = batch.set_column(index, batch.schema.field(index), column.cast(batch.schema.field(index).type))
    return batch
