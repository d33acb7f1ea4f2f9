"""A log read as feedback: what its columns are, which votes belong to which answers, and which of them count.

It is gone through several times and never held: a survey of its columns; where votes stand apart from answers, or
turns apart from each other, a pass that finds what belongs together; a count of the votes; and the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from stages.contracts.rows import canonical_json
from stages.text.column_names import first_of, own_id, vote_in
from stages.text.columns import Settings, Shape, Survey, cells_of, has, value_at
from stages.text.duplicates import Ballots, ballot_of, seconds_of
from stages.text.duplicates import Vote as Direction
from stages.text.exports import (
    Item,
    is_message_row,
    message_id,
    path_to,
    plain_message,
    read_export,
    row_ids,
    row_targets,
    speaker_of,
)
from stages.text.layouts import COLUMNS, Column, Feedback, Layout, as_json_value, read_cells
from stages.text.log_files import MAX_ROW_BYTES, FileTally, LogFile, LoggedRow, read_log
from stages.text.reasons import RejectedRowError
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
    unwrapped,
)

Unrated = Literal["refuse", "demonstrations"]
VoteWeight = Literal["as_given", "counted"]
_ANSWERS = ("completion", "chosen", "rejected", "messages", "conversations")
_NO_ANSWER = frozenset({"unknown_layout", "empty_prompt", "empty_completion"})
_EVENT_KINDS = ("event", "event_type", "action", "type", "operation", "status")


class _Vote(NamedTuple):
    """A vote, as logged."""

    value: Any
    counts: tuple[float, float] | None
    weight: Any
    rater: str | None
    time: Any
    is_retraction: bool


class Event(NamedTuple):
    """An answer with one vote, or without."""

    number: int
    """Of the event in the log, from 0."""
    feedback: Feedback | RejectedRowError
    conversation: str | None
    """Conversation that it is part of, where the log says."""
    row: Mapping[str, Any]
    """The logged row, for columns to split by."""


@dataclass
class _Belonging:
    """Which votes belong to which answers, and which turns to each other."""

    ids: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """By an id, the answer that has it and a hash of its text; a number of -1 where several answers do."""
    votes: list[tuple[tuple[str, ...], _Vote]] = field(default_factory=list)
    of_answer: dict[int, list[_Vote]] = field(default_factory=dict)
    lost: dict[int, RejectedRowError] = field(default_factory=dict)
    """Votes without an answer, by their number."""
    repeated: set[int] = field(default_factory=set)
    """Answers that stand in the log before."""
    messages: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    turns: dict[str, dict[float, list[tuple[Any, Any]]]] = field(default_factory=dict)
    scores: Counter[str] = field(default_factory=Counter)
    holds_voted_answers: bool = False
    """Whether some answers have a vote in their own record."""

    def register(self, number: int, item: Item) -> None:
        """Note an answer under its ids."""
        text = canonical_json(as_json_value([item.cells.get(name) for name in ("prompt", *_ANSWERS)]))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        is_repeated = False
        values = tuple(f"*:{name.partition(':')[2]}" for name in item.own_ids)
        for name in (*item.own_ids, *values):
            known = self.ids.setdefault(name, (number, digest))
            if known[0] != number and known[1] == digest:
                is_repeated = True
            elif known[0] != number:
                self.ids[name] = (-1, digest)
        for name in item.other_ids:
            known = self.ids.setdefault(f"part:{name}", (number, digest))
            if known[0] != number and known[1] != digest:
                self.ids[f"part:{name}"] = (-1, digest)
        if is_repeated:
            self.repeated.add(number)

    def join(self) -> None:
        """Find the answer of each vote."""
        for number, (targets, vote) in enumerate(self.votes):
            found = next(
                (self.ids[name] for target in targets for name in _spellings(target) if name in self.ids), None
            )
            if found is None:
                self.lost[number] = RejectedRowError(
                    "vote_without_answer",
                    f"expected an answer with the id {' or '.join(targets)}, found none in the log",
                )
            elif found[0] < 0:
                self.lost[number] = RejectedRowError("ambiguous_vote", f"several answers have the id {targets[0]}")
            else:
                self.of_answer.setdefault(found[0], []).append(vote)


def _has_vote(item: Item) -> bool:
    return not is_no_vote(item.cells.get("label")) or not is_missing(item.cells.get("up"))


def _spellings(target: str) -> tuple[str, ...]:
    kind, _, value = target.partition(":")
    return (target, f"any:{value}", f"part:{target}", *((f"*:{value}",) if kind != "trace" else ()))


@dataclass
class LogLedger:
    """What was seen of a log and read by nothing, and what became of its records."""

    records: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unknown_labels: Counter[str] = field(default_factory=Counter)
    other_scores: Counter[str] = field(default_factory=Counter)


@dataclass
class FeedbackLog:
    """The files of a log and how to read their rows; can be gone through more than once."""

    files: Sequence[LogFile]
    """Files, in order."""
    settings: Settings = field(default_factory=Settings)
    """What params say about columns and votes."""
    layout: Layout | None = None
    """What every row is; None reads it off its columns."""
    unrated: Unrated = "refuse"
    """Whether answers without a vote, in a log of votes, are refused or demonstrations."""
    score: str | None = None
    """The score that is the vote, where a log holds several."""
    vote_weight: VoteWeight = "as_given"
    """Whether votes weigh as the log says, or each one as much."""
    max_row_bytes: int = MAX_ROW_BYTES
    """Longest row that is read."""
    encoding: str | None = None
    """Encoding of text files; None finds it out."""
    shape: Shape = field(default_factory=lambda: Shape({}))
    """What the columns are; known after `count_votes`."""
    tallies: dict[str, FileTally] = field(default_factory=dict)
    """What was read of each file."""
    ledger: LogLedger = field(default_factory=LogLedger)
    """What was seen of the log."""
    ballots: Ballots = field(default_factory=Ballots)
    """The votes, after `count_votes`."""

    def __post_init__(self) -> None:
        self._belonging = _Belonging()
        self._is_apart = self._has_votes_apart = False
        self._voted_files: set[str] = set()
        self._has_weights = False

    def count_votes(self) -> None:
        """Find out what the columns are, which votes belong to which answers, and count them.

        Raises:
            ValueError: a file is of an unknown kind or damaged, or the log can be read in two ways.
        """
        self.shape = self._survey()
        if self._is_apart:
            self._find_belonging()
        self._count()

    def rows(self, *, progress: str) -> Iterator[tuple[LoggedRow, list[Event]]]:
        """Each record as logged, with its events; a record that is part of others has none.

        Args:
            progress: name to show beside the progress bar.

        Raises:
            ValueError: a file is of an unknown kind or damaged.
        """
        self.ledger.records.clear()
        self.ledger.other_scores.clear()
        index = 0
        for logged, votes in self._voted(progress):
            events = []
            for item, vote, error in votes:
                events.append(self._event(index, logged, item, vote, error))
                index += 1
            self.ledger.records["read"] += 1
            self.ledger.records["with_rows" if events else "part_of_others"] += 1
            yield logged, events

    # ---- passes ----

    def _records(self, progress: str) -> Iterator[LoggedRow]:
        rows = read_log(self.files, max_row_bytes=self.max_row_bytes, encoding=self.encoding, tallies=self.tallies)
        yield from tqdm(rows, desc=progress, unit="row", mininterval=1.0)

    def _survey(self) -> Shape:
        survey = Survey(self.settings)
        for logged in self._records("looking at columns"):
            if logged.row is None:
                continue
            found = None if self._is_mapped() else read_export(logged.row)
            if found is not None:
                self.ledger.formats[found[0]] += 1
                self._is_apart |= len(found[1]) != 1 or any(item.targets for item in found[1])
            elif not self._is_mapped() and is_message_row(logged.row):
                self.ledger.formats["messages"] += 1
                self._is_apart = True
            else:
                self.ledger.formats["rows"] += 1
                survey.add(logged.row)
        shape = survey.shape()
        names = {shape.names.get(name, name) for name in _ANSWERS}
        self._is_apart |= bool(shape.conversation and shape.turn) or not shape.has_answers
        asked = (names - {shape.names.get("completion", "completion")}) | {
            shape.names.get("prompt", "prompt"),
            *shape.parts,
        }
        self._is_apart |= any(survey.has_rows_without(held | set(shape.pair or ())) for held in (names, asked))
        return shape

    def _is_mapped(self) -> bool:
        return not {"prompt", "messages", "completion", "chosen"}.isdisjoint(self.settings.named())

    def _find_belonging(self) -> None:
        for logged in self._records("joining votes and answers"):
            if logged.row is not None and self._is_message(logged.row):
                self._add_message(logged.row)
        self._link_messages()
        number = 0
        belonging = self._belonging
        for _, items in self._items("joining votes and answers"):
            for item in items:
                number += self._note(number, item)
        self._check_scores(belonging.scores)
        belonging.join()
        if belonging.votes and len(belonging.lost) == len(belonging.votes) and not belonging.holds_voted_answers:
            raise ValueError(
                f"none of {len(belonging.votes):,} votes finds its answer: this is a table of votes without answers, "
                f"or their ids differ ({belonging.lost[0].detail}); add the answers to the log"
            )

    def _note(self, number: int, item: Item) -> bool:
        """Note a vote that stands apart, or an answer; whether it is an answer, or no item that can be used."""
        if item.error is None and item.targets:
            self._belonging.scores[item.score or ""] += 1
            if self._is_wanted(item):
                self._belonging.votes.append((item.targets, self._vote(item)))
            return False
        if item.error is None:
            self._belonging.register(number, item)
            self._belonging.holds_voted_answers |= _has_vote(item)
        return True

    def _check_scores(self, scores: Mapping[str, int]) -> None:
        self._has_votes_apart = bool(scores)
        listed = ", ".join(f"{name or 'no name'} ({count:,})" for name, count in sorted(scores.items()))
        if self.score is None and len(scores) > 1:
            raise ValueError(
                f"the log holds several scores: {listed}; name the one that is the vote: normalization.score"
            )
        if self.score is not None and scores and self.score not in scores:
            raise ValueError(f"normalization.score: expected one of the log's scores, {listed}, found {self.score}")

    def _is_wanted(self, item: Item) -> bool:
        return self.score is None or item.score == self.score

    def _count(self) -> None:
        index = 0
        ratings: Counter[str] = Counter()
        seen: set[bytes] = set()
        has_zero = has_minus_one = takes_threshold = False
        for logged, votes in self._voted("counting votes"):
            for item, vote, error in votes:
                if item is not None and item.is_repeated:
                    self.ballots.repeat(index)
                elif error is None and vote is not None and item is not None:
                    self._cast(index, logged, item, vote, seen)
                    has_zero |= is_zero(vote.value)
                    has_minus_one |= is_minus_one(vote.value)
                    if self._takes_threshold(vote.value):
                        ratings[str(unwrapped(vote.value))] += 1
                        takes_threshold |= rating_of(vote.value) is not None
                index += 1
        self.ballots.close()
        name = self.shape.names.get("label", "label")
        threshold = self.settings.spelling.threshold
        if takes_threshold and threshold is None:
            listed = ", ".join(f"{value} ({count:,})" for value, count in sorted(ratings.items())[:12])
            raise ValueError(
                f"{name} holds ratings, {listed}, and nothing says which are desired; set "
                "normalization.label_threshold to the smallest that is, and undesired_threshold to the largest that is "
                "not, or label_words for codes such as {'2': undesired}"
            )
        if has_zero and has_minus_one and threshold is None and self._takes_threshold(0):
            raise ValueError(
                f"the column {name} holds both 0 and -1, so that 0 may mean undesired or no vote; set "
                "normalization.label_threshold: 1 if it means undesired, and ignored_labels: [0] if it means no vote"
            )

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

    def _cast(self, index: int, logged: LoggedRow, item: Item, vote: _Vote, seen: set[bytes]) -> None:
        try:
            feedback = self._feedback(item, vote)
        except RejectedRowError as error:
            self._note_unusable(error, index, logged, item, vote)
            return
        ballot = ballot_of(feedback)
        if feedback.label is not None:
            self._voted_files.add(logged.file)
        if feedback.layout in ("prompts", "demonstrations"):
            self.ballots.add(index, ballot)
            return
        weight = feedback.weight if vote.counts is not None or self.vote_weight == "as_given" else 1.0
        self._has_weights |= vote.counts is not None or not is_missing(plain_scalar(vote.weight))
        if vote.rater is not None and vote.counts is None:
            self._cast_again(
                index, ballot.key, None if vote.is_retraction else ballot.vote, vote, logged, weight=weight
            )
        elif self._is_seen(logged, ballot.key, vote, seen):
            self.ballots.repeat(index)
        else:
            self.ballots.add(index, ballot, weight)

    def _note_unusable(self, error: RejectedRowError, index: int, logged: LoggedRow, item: Item, vote: _Vote) -> None:
        if error.reason == "unknown_label":
            self.ledger.unknown_labels[str(unwrapped(vote.value))[:80]] += 1
        elif error.reason == "no_label" and vote.rater is not None:
            self._take_back(index, item, vote, logged)
        elif error.reason in _NO_ANSWER and not is_no_vote(vote.value):
            # A vote whose answer wasn't found makes no demonstrations of the answers that are there.
            self._has_votes_apart = True

    def _cast_again(
        self, index: int, key: bytes, cast: Direction | None, vote: _Vote, logged: LoggedRow, *, weight: float = 1.0
    ) -> None:
        seconds = seconds_of(vote.time)
        is_changed = self.ballots.cast(index, key, cast, rater=vote.rater or "", time=seconds, weight=weight)
        if is_changed and seconds is None and vote.time is not None:
            raise ValueError(
                f"{logged.file}:{logged.line}: a rater voted otherwise before or later, and the time can't be read: "
                f"expected one as in 2026-01-31T12:00 or in seconds, found {vote.time!r:.60}; columns: {{time: none}} "
                "takes the order of the log"
            )

    def _take_back(self, index: int, item: Item, vote: _Vote, logged: LoggedRow) -> None:
        try:
            feedback, _ = self._unvoted(item)
        except RejectedRowError:
            return
        self._cast_again(index, ballot_of(feedback._replace(label=True)).key, None, vote, logged)

    def _is_seen(self, logged: LoggedRow, key: bytes, vote: _Vote, seen: set[bytes]) -> bool:
        """Whether the log holds the same row before, and something in it tells events apart."""
        if vote.time is None and own_id(logged.row or {}) is None:
            return False
        text = f"{canonical_json(as_json_value(logged.row))}{key.hex()}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        is_seen = digest in seen
        seen.add(digest)
        return is_seen

    # ---- records ----

    def _items(self, progress: str) -> Iterator[tuple[LoggedRow, list[Item]]]:
        for logged in self._records(progress):
            if logged.row is None:
                error = logged.error or RejectedRowError("json_invalid", "expected a row, found none")
                yield logged, [Item({}, error=error)]
            else:
                yield logged, self._items_of(logged.row)

    def _items_of(self, row: dict[str, Any]) -> list[Item]:
        if not self._is_mapped():
            found = read_export(row)
            if found is not None:
                return [self._overridden(row, item) for item in found[1]]
            if is_message_row(row):
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
        else:
            self._add_turns_before(item)
        return [item]

    def _overridden(self, row: dict[str, Any], item: Item) -> Item:
        """An item of an export with what params map read from where they say."""
        if item.error is None:
            for ours, path in self.settings.named().items():
                if has(row, path):
                    item.cells[ours] = value_at(row, path)
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
        has_vote = _has_vote(item)
        if not self.shape.has_answers:
            return True
        if has_vote and not any(name in item.cells for name in ("prompt", *_ANSWERS[1:])):
            return True
        return has_vote and not any(name in item.cells for name in _ANSWERS)

    def _add_turns_before(self, item: Item) -> None:
        """Put the earlier turns of a conversation before a plain question that is one of its later ones."""
        conversation, turn = item.cells.get("conversation"), _as_number(item.cells.get("turn"))
        prompt = item.cells.get("prompt")
        if conversation is None or turn is None or not isinstance(prompt, str):
            return
        before = self._belonging.turns.get(str(conversation), {})
        answers = before.setdefault(turn, [])
        said = (prompt, item.cells.get("completion"))
        if said not in answers:
            answers.append(said)
            self._belonging.turns[str(conversation)] = before
        earlier = [before[number] for number in sorted(before) if number < turn]
        if not earlier or any(isinstance(asked, str) and asked in prompt for turns in earlier for asked, _ in turns):
            return
        turns: list[dict[str, Any]] = []
        for answered in earlier:
            asked, answer = answered[0]
            if len(answered) > 1 or not isinstance(answer, str):
                item.error = RejectedRowError(
                    "missing_turns", f"expected one answer to each turn before turn {turn:g} of {conversation}"
                )
                return
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        item.cells["prompt"] = [*turns, {"role": "user", "content": prompt}]

    # ---- tables of messages ----

    def _is_message(self, row: Mapping[str, Any]) -> bool:
        return not self._is_mapped() and read_export(row) is None and is_message_row(row)

    def _add_message(self, row: Mapping[str, Any]) -> None:
        self._belonging.messages[message_id(row) or ""] = row

    def _link_messages(self) -> None:
        """Where no message names the one before it, each follows the one before it in its conversation."""
        messages = self._belonging.messages
        if not messages or any(
            first_of(row, ("parent_id", "parent_message_id", "parent")) for row in messages.values()
        ):
            return
        last: dict[str, str] = {}
        order = sorted(messages, key=lambda name: _order_of(messages[name]))
        for name in order:
            key = first_of(messages[name], ("conversation_id",))
            conversation = str(messages[name].get(key or ""))
            messages[name] = {**messages[name], "parent_id": last.get(conversation)}
            last[conversation] = name

    def _message_items(self, row: Mapping[str, Any]) -> list[Item]:
        if speaker_of(row) != "assistant":
            return []
        name = message_id(row) or ""
        found = vote_in({key: value for key, value in row.items() if key not in ("text", "content")})
        shared = {"conversation": value_at(row, first_of(row, ("conversation_id", "message_tree_id")) or "")}
        key, time = first_of(row, ("rater", "user_id", "user")), first_of(row, ("updated_at", "created_at", "time"))
        try:
            cells = {**shared, "messages": path_to(self._belonging.messages or {name: row}, name)}
        except RejectedRowError as error:
            return [Item({}, error=error)] if found else []
        if found:
            cells |= {"label": found[1], "rater": row[key] if key else None, "time": row[time] if time else None}
        source = {str(name): as_json_value(value) for name, value in row.items() if name not in plain_message(row)}
        return [Item(cells, source, own_ids=(f"message:{name}", f"any:{name}"))]

    # ---- votes ----

    def _vote(self, item: Item) -> _Vote:
        cells = item.cells
        counts = None
        if "up" in cells and "down" in cells:
            numbers = [_as_number(cells[name]) or 0.0 for name in ("up", "down")]
            counts = (numbers[0], numbers[1])
        rater = cells.get("rater")
        if is_missing(plain_scalar(rater)) and not is_missing(cells.get("event")):
            rater = f"event {cells['event']}"
        kind = first_of([name for name in item.source if isinstance(item.source[name], str)], _EVENT_KINDS)
        value = cells.get("label")
        is_retraction = kind is not None and is_retracted(item.source[kind])
        time = plain_scalar(cells.get("time"))
        return _Vote(
            value,
            counts,
            cells.get("weight"),
            None if is_missing(plain_scalar(rater)) else str(plain_scalar(rater)),
            None if is_missing(time) else time,
            is_retraction,
        )

    def _voted(
        self, progress: str
    ) -> Iterator[tuple[LoggedRow, list[tuple[Item | None, _Vote | None, RejectedRowError | None]]]]:
        """Each record with its answers, each with one of the votes on it."""
        answer = vote_number = 0
        for logged, items in self._items(progress):
            found: list[tuple[Item | None, _Vote | None, RejectedRowError | None]] = []
            for item in items:
                if item.error is not None:
                    found.append((None, None, item.error))
                    answer += 1
                elif item.targets:
                    if not self._is_wanted(item):
                        self.ledger.other_scores[item.score or ""] += 1
                        continue
                    if lost := self._belonging.lost.get(vote_number):
                        found.append((None, None, lost))
                    vote_number += 1
                else:
                    found += self._votes_on(item, answer)
                    answer += 1
            yield logged, found

    def _votes_on(self, item: Item, number: int) -> list[tuple[Item | None, _Vote | None, RejectedRowError | None]]:
        votes = list(self._belonging.of_answer.get(number, ()))
        item.is_repeated = number in self._belonging.repeated and not votes and "label" not in item.cells
        own = self._vote(item)
        if "label" in item.cells or own.counts is not None or not votes:
            votes.append(own)
        return [(item, vote, None) for vote in votes]

    def _unvoted(self, item: Item) -> tuple[Feedback, Any]:
        cells = {name: value for name, value in item.cells.items() if name == "label" or value is not None}
        if self.shape.counts is not None and any(name in cells for name in _ANSWERS):
            cells.setdefault("label", None)
        ours: dict[Column, Any] = {name: cells[name] for name in COLUMNS if name in cells}
        names: dict[Column, str] = {name: self.shape.names[name] for name in COLUMNS if name in self.shape.names}
        return read_cells(ours, dict(item.source), layout=self.layout, columns=names)

    def _feedback(self, item: Item, vote: _Vote) -> Feedback:
        cells = dict(item.cells)
        if vote.value is not None or vote.counts is not None:
            cells.setdefault("label", vote.value)
        if not is_missing(plain_scalar(vote.weight)):
            cells["weight"] = vote.weight
        feedback, _ = self._unvoted(Item(cells, item.source))
        if feedback.layout != "unpaired":
            return feedback
        if vote.counts is not None:
            return _counted(feedback, vote.counts)
        if vote.is_retraction:
            raise RejectedRowError("no_label", "expected a vote, found none, or one that was taken back")
        return feedback._replace(label=parse_vote(vote.value, spelling=self.settings.spelling))

    def _event(
        self,
        index: int,
        logged: LoggedRow,
        item: Item | None,
        vote: _Vote | None,
        error: RejectedRowError | None,
    ) -> Event:
        if item is None or vote is None:
            reason = error or RejectedRowError("json_invalid", "expected a row, found none")
            return Event(index, reason, None, logged.row or {})
        conversation = plain_scalar(item.cells.get("conversation"))
        place = None if is_missing(conversation) else str(conversation)
        try:
            feedback: Feedback | RejectedRowError = self._feedback(item, vote)
        except RejectedRowError as refused:
            feedback = refused
        if isinstance(feedback, Feedback) and feedback.layout == "demonstrations" and self._is_unrated(logged, item):
            feedback = RejectedRowError(
                "unrated", "nobody voted on this answer; unrated: demonstrations takes such answers as demonstrations"
            )
        return Event(index, feedback, place, logged.row or {})

    def _is_unrated(self, logged: LoggedRow, item: Item) -> bool:
        if self.unrated == "demonstrations" or self.layout == "demonstrations":
            return False
        is_export = bool(item.own_ids) and not item.own_ids[0].startswith("any:") and "messages" not in self.shape.names
        return (
            self._has_votes_apart
            or logged.file in self._voted_files
            or (is_export and "rows" not in self.ledger.formats)
        )

    def weigh(self, feedback: Feedback) -> Feedback:
        """Feedback with the weight of all the votes that say so, less those that say the opposite.

        Where raters disagree, their numbers are kept beside the other columns.
        """
        if feedback.layout not in ("unpaired", "pairs"):
            return feedback
        votes_for, votes_against = self.ballots.weights(ballot_of(feedback))
        source = feedback.source
        if votes_for and votes_against and "votes" not in source:
            agree, disagree = max(votes_for, votes_against), min(votes_for, votes_against)
            source = {**source, "votes": {"agree": agree, "disagree": disagree}}
        if not self._has_weights and self.vote_weight == "as_given":
            return feedback._replace(source=source)
        return feedback._replace(source=source, weight=abs(votes_for - votes_against))


def _counted(feedback: Feedback, counts: tuple[float, float]) -> Feedback:
    up, down = counts
    if up == down:
        reason = "contradictory_labels" if up else "no_label"
        raise RejectedRowError(reason, f"{up:g} votes for this answer and {down:g} against it")
    return feedback._replace(label=up > down, weight=feedback.weight * abs(up - down))


def _as_number(value: Any) -> float | None:
    value = plain_scalar(value)
    if isinstance(value, bool):
        return float(value)
    try:
        return None if is_missing(value) else float(value)
    except (TypeError, ValueError):
        return None


def _order_of(message: Mapping[str, Any]) -> tuple[float, float]:
    turn = first_of(message, ("turn", "turn_index", "message_index", "index", "position", "order"))
    time = first_of(message, ("created_at", "timestamp", "time", "create_time"))
    return (_as_number(message.get(turn or "")) or 0.0, seconds_of(message.get(time or "")) or 0.0)
