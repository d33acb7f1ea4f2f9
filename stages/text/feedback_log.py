"""A log read as feedback: what its columns are, and each answer with each of the votes on it.

It is gone through two or three times and never held: a survey of its columns; where votes stand apart from answers, or
turns apart from each other, a pass that notes what may belong together; and the events.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from stages.contracts.ledger import Fate
from stages.contracts.rows import canonical_json
from stages.text.cells import cells_of, joined_parts
from stages.text.column_names import (
    CONVERSATION_IDS,
    RETRACTIONS,
    TIMES,
    canonical,
    first_of,
    is_id,
    is_scale,
    is_vote,
    own_id,
    points_elsewhere,
    vote_in,
    votes_in,
)
from stages.text.column_shape import shape_of
from stages.text.column_survey import Survey
from stages.text.columns import Settings, Shape, has, value_at
from stages.text.event_store import EventStore
from stages.text.exports import (
    Item,
    is_message_row,
    message_id,
    plain_message,
    row_ids,
    row_targets,
    speaker_of,
    why_broken,
)
from stages.text.formats import RecordReader
from stages.text.joins import ANSWERS, Joined, Joins, number_of
from stages.text.layouts import (
    COLUMNS,
    Column,
    Feedback,
    Layout,
    as_json_value,
    is_answered,
    is_conversation,
    parse_conversation,
    read_cells,
)
from stages.text.log_files import MAX_ROW_BYTES, FileTally, LogFile, LoggedRow, read_log
from stages.text.rating_scales import Scales
from stages.text.reasons import RejectedRowError
from stages.text.resolution import Cast, Resolution, question_of
from stages.text.times import DateOrder, Times
from stages.text.transcripts import turns_in
from stages.text.votes import (
    is_minus_one,
    is_missing,
    is_no_vote,
    is_number,
    is_retracted,
    is_zero,
    parse_vote,
    plain_scalar,
    rating_of,
    takes_threshold,
    unwrapped,
    vote_or_none,
)

PairsFrom = Literal["corrections", "regenerations"]
Transcripts = Literal["turns", "text"]
Unrated = Literal["refuse", "demonstrations"]
VoteWeight = Literal["as_given", "counted"]
_CONVERSATIONS = ("messages", "conversations")
_SAID = ("prompt", *ANSWERS)
_NO_ANSWER = frozenset({"unknown_layout", "empty_prompt", "empty_completion"})
_EVENT_KINDS = ("event", "event_type", "action", "type", "operation", "status")
_MODELS = ("model", "model_id", "model_name", "generator", "engine")
_MAX_WORDS = 1000


class _Vote(NamedTuple):
    """A vote, as logged."""

    value: Any
    up: float | None
    down: float | None
    weight: Any
    rater: str | None
    id: str | None
    """Of the event, where no rater is known: the same in two exports is one vote."""
    time: float | None
    unread_time: str | None
    is_retraction: bool
    correction: Any = None
    """What the rater would have answered."""
    part: int = 0
    """Which of several votes in its record it is."""
    file: str | None = None
    line: int | None = None
    """Where it stands, if elsewhere than its answer."""

    @property
    def voter(self) -> str | None:
        """Who may vote again."""
        return self.rater if self.rater is not None or self.id is None else f"event {self.id}"

    @property
    def counts(self) -> tuple[float, float] | None:
        return None if self.up is None or self.down is None else (self.up, self.down)


class Entry(NamedTuple):
    """What stands in the ledger about a record or one of its events, as far as it is known before votes are counted."""

    logged: LoggedRow
    fate: Fate | None = None
    """None of an event that votes decide about."""
    error: RejectedRowError | None = None
    """Why it is refused."""
    event: dict[str, Any] | None = None
    """Columns of `feedback_events`, but for where it stands; None of what can't be read or is no event."""


@dataclass
class LogLedger:
    """What was seen of a log and read by nothing, and what became of its records."""

    records: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unknown_labels: Counter[str] = field(default_factory=Counter)
    other_scores: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    """What was understood of votes without a setting, a sentence each."""


@dataclass
class FeedbackLog:
    """The files of a log and how to read their rows."""

    files: Sequence[LogFile]
    """Files, in order."""
    store: EventStore
    """Holds what is too much for memory."""
    settings: Settings = field(default_factory=Settings)
    """What params say about columns and votes."""
    layout: Layout | None = None
    """What every row is; None reads it off its columns."""
    pairs_from: Sequence[PairsFrom] = ()
    """What makes pairs besides comparisons."""
    format: str | None = None
    """Format of every record, by name or as "module:function"; None recognises it."""
    unrated: Unrated = "refuse"
    """Whether answers without a vote, in a log of votes, are refused or demonstrations."""
    score: str | None = None
    """The score that is the vote, where a log holds several."""
    vote_weight: VoteWeight = "as_given"
    """Whether votes weigh as the log says, or each one as much."""
    transcripts: Transcripts = "turns"
    """Whether a text that is a transcript of Human and Assistant is read as its turns, or stays one text."""
    date_order: DateOrder | None = None
    """Which number of dates such as 02.03.2025 stands first; None finds it out."""
    until: float | None = None
    """Seconds since 1970 from which on events are refused; None sets no limit."""
    max_row_bytes: int = MAX_ROW_BYTES
    """Longest row that is read."""
    encoding: str | None = None
    """Encoding of text files; None finds it out."""
    shape: Shape = field(default_factory=lambda: Shape({}))
    """What the columns are; known after the survey."""
    tallies: dict[str, FileTally] = field(default_factory=dict)
    """What was read of each file."""
    ledger: LogLedger = field(default_factory=LogLedger)
    """What was seen of the log."""
    has_weights: bool = False
    """Whether the log says what votes weigh or how many there are."""

    def __post_init__(self) -> None:
        self._reader = RecordReader(self.format, with_regenerations="regenerations" in self.pairs_from)
        self._times = Times(self.date_order)
        self._joins = Joins(self.store, self._times)
        self.resolution = Resolution(self.store)
        self._is_apart = self._has_votes_apart = False
        self._voted_files: set[str] = set()
        self._own_scores: Counter[str] = Counter()
        self._ratings: Counter[str] = Counter()
        self._scales = Scales()
        self._has_transcripts = self._has_corrections = False
        self._has_zero = self._has_minus_one = self._has_rating = False

    def entries(self) -> Iterator[Entry]:
        """What each record is and gives, in the order of the log; `resolution` knows all events afterwards.

        Raises:
            ValueError: a file is of an unknown kind or damaged, or the log can be read in two ways.
        """
        self.shape = self._survey()
        if self._is_apart:
            self._note_what_belongs_together()
        joins = self._joins.in_step() if self._is_apart else None
        number = event = 0
        for logged, items in self._items("reading events"):
            found: list[Entry] = []
            for item in items:
                joined = Joined() if joins is None else joins.of(number)
                number += 1
                found += self._entries_of(logged, item, joined, event + len(found))
            self.ledger.records["read"] += 1
            self.ledger.records["with_rows" if found else "part_of_others"] += 1
            yield from found or [Entry(logged, self._fate_without_events(logged, items))]
            event += len(found)
        self._check_ratings()
        self.ledger.said += self._times.sentences()
        self.resolution.mark_unrated(None if self._has_votes_apart else sorted(self._voted_files))

    # ---- passes ----

    def _records(self, progress: str) -> Iterator[LoggedRow]:
        rows = read_log(self.files, max_row_bytes=self.max_row_bytes, encoding=self.encoding, tallies=self.tallies)
        yield from tqdm(rows, desc=progress, unit="row", mininterval=1.0)

    def _survey(self) -> Shape:
        survey = Survey(self.settings, self.store)
        unread_parts: Counter[str] = Counter()
        unread_votes: Counter[str] = Counter()
        voted_exports: Counter[str] = Counter()
        for logged in self._records("looking at columns"):
            if logged.row is None:
                continue
            found = self._export(logged.row)
            if found is None:
                voted_exports.update(self._voted_export(logged.row))
            elif found[0] == "rated_turns" or not any(map(_is_voted, found[1])):
                unread_votes.update(self._votes_beside(logged.row))
            self._note_times(logged.row, found)
            if found is not None:
                self.ledger.formats[found[0]] += 1
                self._is_apart |= len(found[1]) != 1 or any(item.targets for item in found[1])
                unread_parts.update(part for item in found[1] for part in item.unread_parts)
                self._own_scores.update(item.score for item in found[1] if item.score and not item.targets)
            elif self._is_message(logged.row):
                self.ledger.formats["messages"] += 1
                self._is_apart = True
            else:
                self.ledger.formats["rows"] += 1
                survey.add(logged.row)
        self._check_scores(self._own_scores)
        self._check_parts(unread_parts)
        _check_votes_beside(unread_votes)
        shape = self._shape_beside(survey, voted_exports)
        names = {shape.names.get(name, name) for name in ANSWERS}
        self._is_apart |= bool(shape.conversation and shape.turn) or not shape.has_answers
        asked = (names - {shape.names.get("completion", "completion")}) | {
            shape.names.get("prompt", "prompt"),
            *shape.parts,
        }
        self._is_apart |= any(survey.has_rows_without(held | set(shape.pair or ())) for held in (names, asked))
        # Ids by which answers and votes find each other are read, though no cell holds them.
        unread = {name: rows for name, rows in shape.unread.items() if not (self._is_apart and is_id(name))}
        return shape._replace(unread=unread)

    def _note_times(self, row: Mapping[str, Any], export: tuple[str, list[Item]] | None) -> None:
        """Days over 12 tell which number of a date is the day."""
        mapped = self.settings.named().get("time")
        if export is not None or mapped is not None:
            times = [item.cells.get("time") for item in export[1]] if export else [value_at(row, mapped or "")]
        else:
            times = [value for name, value in row.items() if canonical(name) in TIMES]
        for time in times:
            self._times.note(time)

    def _is_mapped(self) -> bool:
        return not {"prompt", "messages", "completion", "chosen"}.isdisjoint(self.settings.named())

    def _note_what_belongs_together(self) -> None:
        number = 0
        for logged, items in self._items("joining votes and answers"):
            may_be_message = not items or items[0].is_message
            is_message = may_be_message and logged.row is not None and self._is_message(logged.row)
            if is_message and logged.row is not None and self._export(logged.row) is None:
                vote = items[0].cells.get("label") if items else None
                self._joins.add_message(logged.row, number if items else None, vote=vote)
            for item in items:
                # Votes on an answer that can't be used belong to it nevertheless.
                if not is_message and (item.error is None or item.own_ids):
                    self._note(number, item, logged)
                number += 1
        self._has_votes_apart = bool(self._joins.scores)
        self._check_scores(self._joins.scores)
        self._joins.join()

    def _note(self, number: int, item: Item, logged: LoggedRow) -> None:
        """Note a vote that stands apart, or an answer."""
        if item.targets:
            self._joins.scores[item.score or ""] += 1
            if self._is_wanted(item):
                vote = self._vote(item, logged)._replace(file=logged.file, line=logged.line)
                self._joins.add_vote(number, item.targets, as_json_value(vote._asdict()))
            return
        self._joins.add_answer(number, item)
        self._joins.holds_voted_answers |= _has_vote(item)
        turn, prompt = number_of(item.cells.get("turn")), item.cells.get("prompt")
        if item.cells.get("conversation") is not None and turn is not None and isinstance(prompt, str):
            conversation = str(item.cells["conversation"])
            self._joins.add_turn(number, conversation, turn, asked=prompt, answer=item.cells.get("completion"))

    def _check_scores(self, scores: Mapping[str, int]) -> None:
        listed = ", ".join(f"{name or 'no name'} ({count:,})" for name, count in sorted(scores.items()))
        if self.score is None and len(scores) > 1:
            raise ValueError(f"the log holds several scores: {listed}; name the one that is the vote: ingestion.score")
        if self.score is not None and scores and self.score not in scores:
            raise ValueError(f"ingestion.score: expected one of the log's scores, {listed}, found {self.score}")

    def _check_parts(self, parts: Mapping[str, int]) -> None:
        settings = self.settings
        said = {*settings.prompt_parts, *settings.named().values()}
        listed = "".join(
            f"\n- {name} ({count:,}) may be part of the question; prompt_parts: [{name}, NAME OF THE QUESTION] puts it "
            f"before the question, columns: {{{name}: none}} leaves it out"
            for name, count in sorted(parts.items())
            if name not in said and not settings.is_left_out(name)
        )
        if listed:
            raise ValueError(f"nothing reads what stands beside the question; say in ingestion what it is:{listed}")

    def _votes_beside(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Columns of an export that hold votes and that its format doesn't read."""
        for name, value in row.items():
            is_said = self.settings.is_left_out(name) or name in self.settings.named().values()
            vote = unwrapped(value)
            if not is_said and is_vote(name) and not is_no_vote(vote) and not isinstance(vote, Mapping | list):
                yield name

    def _voted_export(self, row: Mapping[str, Any]) -> list[str]:
        """The format of an export with votes, where mapped columns have it read as a row."""
        found = self._reader.read(row) if self._is_mapped() else None
        return [found[0]] if found is not None and any(map(_is_voted, found[1])) else []

    def _shape_beside(self, survey: Survey, voted_exports: Counter[str]) -> Shape:
        """The shape of rows, unless they are exports whose votes stand where no column is."""
        name = next(iter(voted_exports), None)
        try:
            shape = shape_of(survey)
        except ValueError as error:
            hint = f"\n- format: {name} reads records of this form with their votes, beside what columns map"
            raise ValueError(f"{error}{hint if name else ''}") from error
        has_votes = shape.counts or shape.pair or not {"label", "chosen"}.isdisjoint((*shape.names, *survey.columns))
        if name is not None and not (has_votes or self.settings.is_left_out("label")):
            raise ValueError(
                f"records have votes in the form of {name}, and columns that map a part of the question or the answer "
                f"have them read as rows without votes; format: {name} reads both, columns: {{label: none}} takes them "
                "without votes"
            )
        return shape

    def _is_wanted(self, item: Item) -> bool:
        """Whether an item is no score, or the one that is the vote."""
        is_score = bool(item.targets) or item.score is not None
        return not is_score or self.score is None or item.score == self.score

    # ---- records ----

    def _items(self, progress: str) -> Iterator[tuple[LoggedRow, list[Item]]]:
        """Each record with its items, the same in every pass."""
        for logged in self._records(progress):
            if logged.row is None:
                error = logged.error or RejectedRowError("json_invalid", "expected a row, found none")
                yield logged, [Item({}, error=error)]
            else:
                yield logged, self._items_of(logged.row)

    def _items_of(self, row: dict[str, Any]) -> list[Item]:
        found = self._export(row)
        if found is not None:
            return [self._overridden(row, item) for item in found[1]]
        if self._is_message(row):
            return self._message_items(row)
        try:
            cells, source = cells_of(row, self.shape, self.settings)
        except RejectedRowError as error:
            return [Item({}, error=error)]
        item = Item(cells, source)
        item.own_ids, item.other_ids = row_ids(row)
        self._add_who(row, item)
        self._add_counts(row, item)
        if self._is_vote_alone(item) and (targets := row_targets(row)):
            if len(targets) > 0 and not targets[0].startswith("any:"):
                item.cells.setdefault("event", own_id(row))
            item.targets = targets
        elif self._is_vote_alone(item) and not self.shape.has_answers:
            item.error = RejectedRowError("vote_without_answer", "expected a prompt and an answer as text, found ids")
        elif self._is_vote_alone(item) and item.cells.get("conversation") is not None:
            item.error = RejectedRowError(
                "vote_without_answer",
                "expected the id of an answer beside a vote, such as message_id, found that of a conversation, which "
                "may have several answers; name the answer, or put the vote into its message",
            )
        corrected = list(self._corrected(row, item))
        # An answer that somebody mended and nobody voted on is no demonstration.
        return corrected if corrected and not _has_vote(item) else [item, *corrected]

    def _corrected(self, row: Mapping[str, Any], item: Item) -> Iterator[Item]:
        """The pair of an answer and what somebody wrote in its place, if it is asked for."""
        path = self.shape.correction
        text = value_at(row, path) if path is not None and "corrections" in self.pairs_from else None
        if isinstance(text, str) and text.strip() and not item.targets and not item.error:
            yield from _correction_pair(item, text)

    def _corrected_by(self, votes: Sequence[_Vote], item: Item) -> list[Item]:
        """The pairs of an answer and what raters wrote in its place, if they are asked for."""
        corrections = [vote.correction for vote in votes if vote.correction]
        if "corrections" in self.pairs_from:
            return [pair for correction in corrections for pair in _correction_pair(item, correction)]
        if corrections and not self._has_corrections:
            self._has_corrections = True
            self.ledger.said.append("votes come with corrected answers; pairs_from: [corrections] learns them")
        return []

    def _overridden(self, row: dict[str, Any], item: Item) -> Item:
        """An item of an export with what params map read from where they say."""
        if item.error is None:
            for ours, path in self.settings.named().items():
                if has(row, path):
                    item.cells[ours] = value_at(row, path)
            if "prompt" in item.cells and (parts := [value_at(row, part) for part in self.settings.prompt_parts]):
                item.cells["prompt"] = joined_parts(parts)
        return item

    def _add_who(self, row: dict[str, Any], item: Item) -> None:
        for name in ("rater", "time", "conversation", "turn"):
            path = getattr(self.shape, name)
            if path is not None:
                item.cells[name] = value_at(row, path)

    def _add_counts(self, row: dict[str, Any], item: Item) -> None:
        if self.shape.counts is not None:
            item.cells["up"], item.cells["down"] = (value_at(row, path) for path in self.shape.counts)

    def _is_vote_alone(self, item: Item) -> bool:
        if not self.shape.has_answers:
            return True
        # Neither a question nor an answer, and the place for a vote is empty: somebody took a vote back.
        has_vote = _has_vote(item) or ("label" in item.cells and not any(name in item.cells for name in _SAID))
        if has_vote and not any(name in item.cells for name in ("prompt", *ANSWERS[1:])):
            return True
        return has_vote and not any(name in item.cells for name in ANSWERS)

    def _is_message(self, row: Mapping[str, Any]) -> bool:
        """Whether a row that is no export is a message in a table of them."""
        return self._reader.may_be_messages and not self._is_mapped() and is_message_row(row)

    def _export(self, row: Mapping[str, Any]) -> tuple[str, list[Item]] | None:
        return None if self._is_mapped() and self._reader.name is None else self._reader.read(row)

    def _message_items(self, row: Mapping[str, Any]) -> list[Item]:
        if speaker_of(row) != "assistant":
            return []
        found = vote_in({key: value for key, value in row.items() if key not in ("text", "content")})
        key, time = first_of(row, ("rater", "user_id", "user")), first_of(row, ("updated_at", "created_at", "time"))
        cells = {"conversation": value_at(row, first_of(row, (*CONVERSATION_IDS, "message_tree_id")) or "")}
        if found:
            cells |= {"label": found[1], "rater": row[key] if key else None, "time": row[time] if time else None}
        source = {str(name): as_json_value(value) for name, value in row.items() if name not in plain_message(row)}
        name = message_id(row) or ""
        ids = (f"message:{name}", f"any:{name}")
        return [Item(cells, source, own_ids=ids, is_message=True, error=why_broken(row))]

    # ---- votes ----

    def _vote(self, item: Item, logged: LoggedRow) -> _Vote:
        cells = item.cells
        up = down = None
        if "up" in cells and "down" in cells:
            up, down = (number_of(cells[name]) or 0.0 for name in ("up", "down"))
        kind = first_of([name for name in item.source if isinstance(item.source[name], str)], _EVENT_KINDS)
        time = plain_scalar(cells.get("time"))
        seconds, unread = self._times.seconds(time), None
        if seconds is None and not is_missing(time):
            unread = f"{logged.file}:{logged.line}: {time!r:.60}{self._times.why_unread(time)}"
        return _Vote(
            value=cells.get("label"),
            up=up,
            down=down,
            weight=cells.get("weight"),
            rater=_word_in(cells, "rater"),
            id=_word_in(cells, "event"),
            time=seconds,
            unread_time=unread,
            correction=cells.get("correction"),
            is_retraction=(kind is not None and is_retracted(item.source[kind])) or self._is_taken_back(item),
        )

    def _is_taken_back(self, item: Item) -> bool:
        """Whether a column such as `deleted` says so."""
        name = first_of(item.source, RETRACTIONS)
        if name is None or self.settings.is_left_out(name):
            return False
        value = plain_scalar(item.source[name])
        return not is_no_vote(value) and str(value).casefold() not in ("false", "0", "no", "f", "n")

    def _entries_of(self, logged: LoggedRow, item: Item, joined: Joined, event: int) -> list[Entry]:
        """What an item comes to: each vote on an answer, or the answer alone; nothing where it is part of others."""
        if not self._is_wanted(item):
            self.ledger.other_scores[item.score or ""] += 1
            return []
        # A vote whose answer isn't known makes no demonstrations of the answers that are there.
        self._has_votes_apart |= item.error is not None and item.error.reason == "vote_without_answer"
        if item.error is not None or joined.lost is not None:
            return [Entry(logged, "refused", item.error or joined.lost)]
        if item.targets:
            return []
        votes = [_Vote(**vote) for vote in joined.votes]
        pairs = self._corrected_by(votes, item)
        votes = [vote for vote in votes if not (vote.correction and is_no_vote(vote.value))]
        own = [self._vote(item, logged)] if "label" in item.cells else []
        missing = _add_turns(item, joined)
        if missing is not None:
            return [Entry(logged, "refused", missing)] if votes or own or not item.is_message else []
        is_ranked = item.is_message and rating_of(item.source.get("rank")) is not None
        if item.is_message and all(map(self._is_against, votes + own)):
            pairs += self._siblings(item, joined)
        entries = []
        if votes or own or not (pairs or is_ranked):
            entries = self._voted(logged, item, votes, joined, event)
        event += len(entries)
        pair_entries = [
            self._entry(event + i, logged, pair, self._vote(pair, logged), joined.is_repeated)
            for i, pair in enumerate(pairs)
        ]
        return entries + pair_entries

    def _voted(self, logged: LoggedRow, item: Item, votes: Sequence[_Vote], joined: Joined, event: int) -> list[Entry]:
        """Each vote on an answer, or the answer alone."""
        if (unclear := _unclear_turn(item, canonical(self.shape.turn or ""))) is not None:
            return [Entry(logged, "refused", unclear)]
        is_repeated = joined.is_repeated and not votes and "label" not in item.cells
        own, votes = self._vote(item, logged), list(votes)
        if in_cell := votes_in(parse_conversation(item.cells.get("label"))):
            cells = [Item({**item.cells, **one}, item.source) for one in in_cell]
            votes += [self._vote(one, logged)._replace(part=i) for i, one in enumerate(cells)]
        elif "label" in item.cells or own.counts is not None or not votes:
            votes.append(own)
        return [self._entry(event + i, logged, item, vote, is_repeated) for i, vote in enumerate(votes)]

    def _is_against(self, vote: _Vote) -> bool:
        return vote_or_none(vote.value, self.settings.spelling) is False

    def _siblings(self, item: Item, joined: Joined) -> list[Item]:
        """Pairs of a message in a table with better answers to the same message."""
        pairs = [_pair_of(item, better, "ranking") for better in joined.better]
        if "regenerations" in self.pairs_from:
            pairs += [_pair_of(item, better, "regeneration") for better in joined.again]
        return pairs

    def _entry(self, event: int, logged: LoggedRow, item: Item, vote: _Vote, is_repeated: bool) -> Entry:
        if self.until is not None and vote.time is not None and vote.time >= self.until:
            return Entry(
                logged, "refused", RejectedRowError("after_until", f"its time is {vote.time:.0f} s since 1970")
            )
        if not is_repeated:
            self._look_at(vote)
        try:
            feedback = self._feedback(item, vote)
        except RejectedRowError as error:
            if is_repeated:
                return Entry(logged, "merged")
            taken_back = self._unusable(error, item, vote)
            if taken_back is None:
                return Entry(logged, "refused", error)
            question, _ = question_of(taken_back._replace(label=True))
            cast = Cast(event, question, None, vote.voter, vote.time, vote.unread_time)
            self.resolution.add(cast)
            return Entry(logged, event=_columns(cast, taken_back, item, vote))
        cast = self._cast(event, logged, item, vote, feedback)._replace(is_repeated=is_repeated)
        self.resolution.add(cast)
        return Entry(logged, event=_columns(cast, feedback, item, vote))

    def _cast(self, event: int, logged: LoggedRow, item: Item, vote: _Vote, feedback: Feedback) -> Cast:
        question, side = question_of(feedback)
        if feedback.label is not None:
            self._voted_files.add(logged.file)
        cast = Cast(event, question, side, weight=feedback.weight)
        if feedback.layout == "prompts":
            return cast
        if feedback.layout == "demonstrations":
            if self.unrated == "demonstrations" or self.layout == "demonstrations":
                return cast
            is_export = item.own_ids != () and not item.own_ids[0].startswith("any:")
            is_unrated = is_export and "messages" not in self.shape.names and "rows" not in self.ledger.formats
            is_unrated |= item.is_context
            return cast._replace(is_unrated=is_unrated, file_if_unrated=logged.file)
        weight = feedback.weight if vote.counts is not None or self.vote_weight == "as_given" else 1.0
        self.has_weights |= vote.counts is not None or not is_missing(plain_scalar(vote.weight))
        cast = cast._replace(time=vote.time, unread_time=vote.unread_time, weight=weight)
        if vote.voter is None or vote.counts is not None:
            return cast._replace(same=_same(logged, question, vote))
        side_or_none = None if vote.is_retraction else side
        return cast._replace(vote=side_or_none, rater=vote.voter)

    def _unusable(self, error: RejectedRowError, item: Item, vote: _Vote) -> Feedback | None:
        """The answer of a vote that can't be read, if it takes an earlier vote back."""
        if error.reason == "unknown_label":
            _tally(self.ledger.unknown_labels, str(unwrapped(vote.value))[:80])
        elif error.reason == "no_label" and vote.voter is not None:
            try:
                answer = self._unvoted(item)
                return answer._replace(layout="unpaired") if answer.layout == "demonstrations" else answer
            except RejectedRowError:
                return None
        elif error.reason in _NO_ANSWER and not is_no_vote(vote.value):
            # A vote whose answer wasn't found makes no demonstrations of the answers that are there.
            self._has_votes_apart = True
        return None

    def _unvoted(self, item: Item) -> Feedback:
        cells = {name: value for name, value in item.cells.items() if name == "label" or value is not None}
        if self.shape.counts is not None and any(name in cells for name in ANSWERS):
            cells.setdefault("label", None)
        if self.transcripts == "turns":
            self._take_turns(cells)
        ours: dict[Column, Any] = {name: cells[name] for name in COLUMNS if name in cells}
        names: dict[Column, str] = {name: self.shape.names[name] for name in COLUMNS if name in self.shape.names}
        return read_cells(ours, dict(item.source), layout=self.layout, columns=names)[0]

    def _take_turns(self, cells: dict[str, Any]) -> None:
        """Read transcripts as the turns that they are."""
        found = {name: turns for name in _SAID if (turns := turns_in(cells.get(name))) is not None}
        if found and not self._has_transcripts:
            self._has_transcripts = True
            self.ledger.said.append(
                f"transcripts of Human and Assistant in {' and '.join(found)} are read as turns; transcripts: text "
                "leaves them as they are"
            )
        if "prompt" in found:
            # What follows "Assistant:" begins with the space behind it.
            answers = {name: cells[name].strip() for name in ANSWERS if isinstance(cells.get(name), str)}
            found = {**answers, **found}
        cells |= found

    def _feedback(self, item: Item, vote: _Vote) -> Feedback:
        cells = dict(item.cells)
        if vote.value is not None or vote.counts is not None or vote.file is not None:
            cells.setdefault("label", vote.value)
        if not is_missing(plain_scalar(vote.weight)):
            cells["weight"] = vote.weight
        feedback = self._unvoted(Item(cells, item.source))
        if feedback.layout != "unpaired":
            return feedback
        if vote.counts is not None:
            return _counted(feedback, vote.counts)
        if vote.is_retraction:
            raise RejectedRowError("no_label", "expected a vote, found none, or one that was taken back")
        return feedback._replace(label=parse_vote(vote.value, spelling=self.settings.spelling))

    def _fate_without_events(self, logged: LoggedRow, items: Sequence[Item]) -> Fate:
        """Of a record that gives no event: part of others, or, as scores that aren't the vote, nothing that is read."""
        is_part = any(map(self._is_wanted, items)) or (logged.row is not None and self._is_message(logged.row))
        return "joined" if is_part else "left_out"

    # ---- numbers as votes ----

    def _look_at(self, vote: _Vote) -> None:
        rating = rating_of(vote.value)
        self._has_zero |= is_zero(vote.value)
        self._has_minus_one |= is_minus_one(vote.value)
        if self._takes_threshold(vote.value):
            _tally(self._ratings, str(unwrapped(vote.value)))
            self._has_rating |= rating is not None and takes_threshold(rating)
        if rating is not None and str(unwrapped(vote.value)) not in self.settings.spelling.words:
            self._scales.add(rating)

    def _takes_threshold(self, value: Any) -> bool:
        """Whether a vote is a number of which no setting but a threshold says what it means."""
        if not is_number(value):
            return False
        spelling = self.settings.spelling
        try:
            parse_vote(value, spelling=spelling)
        except RejectedRowError as error:
            return error.reason == "unknown_label"
        return str(unwrapped(value)) not in spelling.words

    def _check_ratings(self) -> None:
        name = self.shape.names.get("label", "label")
        threshold = self.settings.spelling.threshold
        if (self._has_rating or (self._ratings and is_scale(name))) and threshold is None:
            listed = ", ".join(f"{value} ({count:,})" for value, count in sorted(self._ratings.items())[:12])
            raise ValueError(
                f"{name} holds ratings, {listed}, and nothing says which are desired; set "
                "ingestion.label_threshold to the smallest that is, and undesired_threshold to the largest that is "
                "not, or label_words for codes such as {'2': undesired}"
            )
        if threshold is not None:
            self.ledger.said += self._scales.sentences(name, threshold)
        if self._has_zero and self._has_minus_one and threshold is None and self._takes_threshold(0):
            raise ValueError(
                f"the column {name} holds both 0 and -1, so that 0 may mean undesired or no vote; set "
                "ingestion.label_threshold: 1 if it means undesired, and ignored_labels: [0] if it means no vote"
            )


def _is_voted(item: Item) -> bool:
    """Whether an item is a vote, has one or makes a pair, or says why it is refused."""
    return item.error is not None or bool(item.targets) or not {"label", "up", "chosen"}.isdisjoint(item.cells)


def _check_votes_beside(votes: Mapping[str, int]) -> None:
    listed = "".join(
        f"\n- {name} ({count:,}) is named like a vote; columns: {{label: {name}}} reads it, {{{name}: none}} leaves it "
        "out"
        for name, count in sorted(votes.items())
    )
    if listed:
        raise ValueError(f"nothing reads what stands beside the answer; say in ingestion what it is:{listed}")


def _add_turns(item: Item, joined: Joined) -> RejectedRowError | None:
    """Give an answer the turns before it; why they aren't there."""
    for turns in (joined.messages, joined.before):
        if isinstance(turns, RejectedRowError):
            return turns
    if item.is_message:
        item.cells["messages"] = joined.messages
    elif joined.before is not None and not isinstance(joined.before, RejectedRowError):
        item.cells["prompt"] = [*joined.before, {"role": "user", "content": item.cells["prompt"]}]
    return None


def _pair_of(item: Item, better: Mapping[str, Any], what: str) -> Item:
    """An answer in a table of messages and a better one to the same message."""
    *asked, worse = item.cells["messages"]
    cells = {"prompt": asked, "chosen": [better], "rejected": [worse], "conversation": item.cells.get("conversation")}
    return Item(cells, {"pair": what})


_POINTING = frozenset({"rated", "voted", "target", "feedback"})


def _unclear_turn(item: Item, column: str) -> RejectedRowError | None:
    """Why it isn't clear which answer of a conversation a vote is on, which would else be the last."""
    found = next((parse_conversation(item.cells[name]) for name in _CONVERSATIONS if name in item.cells), None)
    held: list[Mapping[str, Any]] = list(found) if found and is_conversation(found) else []
    # Calls of tools and what follows them are one answer to one question.
    asked = [turn for turn in held if turn.get("role", turn.get("from")) != "tool"]
    num_answers = sum(is_answered([turn]) > is_answered([before]) for before, turn in itertools.pairwise(asked))
    votes, turn = parse_conversation(item.cells.get("label")), number_of(item.cells.get("turn"))
    if num_answers < 2 or votes is None:
        return None
    if points_elsewhere(votes):
        return RejectedRowError(
            "unknown_label",
            f"expected a vote on the last of {num_answers} answers, found votes that name messages or turns; put each "
            "into its message, as in {role: assistant, content: ..., rating: 1}, or columns: {label: NAME.KEY} if they "
            "are all on the last",
        )
    if isinstance(votes, list) and len(votes) == num_answers and not any(isinstance(vote, Mapping) for vote in votes):
        return RejectedRowError(
            "unknown_label",
            f"expected a vote on the last answer, found {len(votes)} beside as many answers; if there is one for each, "
            "put it into its message, as in {role: assistant, content: ..., rating: 1}",
        )
    # Turns are counted from 0 or 1, by answers or by messages; of a rated turn 1 may be the first as well as the last.
    last = {
        num_answers,
        len(held) - 1,
        len(held),
        *(() if column.partition("_")[0] in _POINTING else (num_answers - 1,)),
    }
    if turn is None or turn in last:
        return None
    return RejectedRowError(
        "unknown_label",
        f"expected a vote on the last of {num_answers} answers, found one on turn {turn:g}; cut the conversation "
        "behind the answer that was voted on, or columns: {turn: none} if it is the last",
    )


def _correction_pair(item: Item, text: Any) -> Iterator[Item]:
    """The pair of an answer and what somebody wrote in its place."""
    cells = {name: value for name, value in item.cells.items() if name not in ("label", "up", "down", "time")}
    held = [parse_conversation(cells.pop(name)) for name in _CONVERSATIONS if name in cells]
    turns = held[0] if held and is_conversation(held[0]) else []
    answer = cells.pop("completion", None)
    if answer is not None:
        pair = {"chosen": text, "rejected": answer}
    elif is_answered(turns):
        said = text if isinstance(text, list) else [{"role": "assistant", "content": text}]
        pair = {"chosen": [*turns[:-1], *said], "rejected": turns}
    else:
        return
    yield Item({**cells, **pair}, {**item.source, "pair": "correction"})


def _has_vote(item: Item) -> bool:
    return not is_no_vote(item.cells.get("label")) or not is_missing(item.cells.get("up"))


def _word_in(cells: Mapping[str, Any], name: str) -> str | None:
    value = plain_scalar(cells.get(name))
    return None if is_missing(value) else str(value)


def _tally(counter: Counter[str], word: str) -> None:
    """Count a word, of which a log may have any number."""
    counter[word if word in counter or len(counter) < _MAX_WORDS else "others"] += 1


def _same(logged: LoggedRow, question: str, vote: _Vote) -> bytes | None:
    """What the records of one event in several exports have in common, if something in them tells events apart."""
    if vote.time is None and vote.unread_time is None and own_id(logged.row or {}) is None:
        return None
    text = f"{canonical_json(as_json_value(logged.row))}{question}{vote.part}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _counted(feedback: Feedback, counts: tuple[float, float]) -> Feedback:
    up, down = counts
    if up == down:
        reason = "contradictory_labels" if up else "no_label"
        raise RejectedRowError(reason, f"{up:g} votes for this answer and {down:g} against it")
    return feedback._replace(label=up > down, weight=feedback.weight * abs(up - down))


def _columns(cast: Cast, feedback: Feedback, item: Item, vote: _Vote) -> dict[str, Any]:
    """An event as `feedback_events` has it."""
    completions = [*map(canonical_json, feedback.completions), None, None]
    are_complete = [*feedback.are_complete, True, True]
    model = first_of(item.source, _MODELS)
    found = item.source[model] if model else None
    value = as_json_value(unwrapped(vote.value))
    rating = rating_of(value)
    return {
        "event": cast.event,
        "layout": feedback.layout,
        "question": cast.question,
        "conversation": _word_in(item.cells, "conversation"),
        "turn": number_of(item.cells.get("turn")),
        "prompt": canonical_json(feedback.prompt),
        "answer": completions[0],
        "rejected": completions[1],
        "tools": canonical_json(feedback.tools) if feedback.tools else None,
        "is_complete": are_complete[0],
        "is_rejected_complete": are_complete[1],
        "label": feedback.label,
        "vote": None if is_missing(value) else canonical_json(as_json_value(vote.value)),
        "rating": None if rating is None else rating.number,
        "up": vote.up,
        "down": vote.down,
        "weight": feedback.weight,
        "agree": None,
        "disagree": None,
        "rater": vote.rater,
        "time": vote.time,
        "model": found if isinstance(found, str) else None,
        "vote_file": vote.file,
        "vote_line": vote.line,
        "source": canonical_json(feedback.source),
    }
