"""What of a log belongs together: votes and the answers that they name, messages and those before them.

Records are noted one by one under the number of their item, and found again in that order, so that none is held.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from stages.contracts.rows import canonical_json
from stages.text.column_names import CONVERSATION_IDS, first_of
from stages.text.event_store import EventStore, InStep
from stages.text.exports import Item, message_id, parent_of, plain_message, speaker_of, why_broken
from stages.text.layouts import MAX_MESSAGES, as_json_value
from stages.text.reasons import RejectedRowError
from stages.text.times import Times
from stages.text.votes import VoteWords, is_missing, plain_scalar, rating_of, vote_or_none

ANSWERS = ("completion", "chosen", "rejected", "messages", "conversations")
_PARENTS = ("parent_id", "parent_message_id", "parent")
_PLACES = ("turn", "turn_index", "message_index", "index", "position", "order")
_TIMES = ("created_at", "timestamp", "time", "create_time")

# An id that several answers of other text have names none of them.
_FIND = """
    create table owners as
        select name, min(number) as number, count(distinct text) > 1 as is_ambiguous from ids group by name;
    create table found as
        select wanted.number as vote, arg_min(owners.number, rank) as answer,
            arg_min(is_ambiguous, rank) as is_ambiguous
        from wanted join owners using (name) group by wanted.number;
"""
_VOTES_ON = """
    select answer, votes.number, votes.vote from found join votes on found.vote = votes.number
    where not is_ambiguous order by answer, votes.number
"""
_LOST = """
    select votes.number, targets, is_ambiguous from votes left join found on found.vote = votes.number
    where is_ambiguous is distinct from false order by votes.number
"""
_REPEATED = """
    select distinct number from (
        select number, min(number) over (partition by name, text) as earliest from ids where is_own
    ) where number > earliest order by number
"""
# Of a message in two exports the later record counts, as of a message that was edited.
_NODES = """
    create table nodes as
        select id, conversation, parent, said, place, time, rank, is_answer, is_voted, label, place_in_log from messages
        qualify row_number() over (partition by id order by place_in_log desc) = 1;
"""
_FOLLOW = """
    create or replace table nodes as
        select * replace (lag(id) over (partition by conversation order by place, time, place_in_log) as parent)
        from nodes;
"""
# Answers to the same message that people ranked before this one; 0 is the best.
_BETTER = """
    select messages.number, nodes.said from messages join nodes on nodes.parent = messages.parent
    where messages.number is not null and nodes.rank < messages.rank and nodes.said is not null
    order by messages.number, nodes.rank, nodes.place_in_log
"""
# Of answers to the same message the one that was gone on from, or else the last, unless a vote says otherwise.
_AGAIN = """
    with answers as (
        select *, id in (select parent from nodes where parent is not null) as is_gone_on from nodes
        where is_answer and parent is not null
    ), judged as (
        select *, sum(is_gone_on::int) over (partition by parent) as num_gone_on,
            max(place_in_log) over (partition by parent) as last
        from answers
    )
    select messages.number, better.said from messages join judged as worse using (id)
        join judged as better on worse.parent = better.parent
    where messages.number is not null and worse.id <> better.id and better.num_gone_on < 2
        and not (better.is_voted and better.label is distinct from true)
        and case when better.num_gone_on = 1 then better.is_gone_on else better.place_in_log = better.last end
    order by messages.number
"""
_PATHS = f"""
    with recursive path(number, id, height) as (
        select number, id, 0 from messages where number is not null
        union all
        select number, nodes.parent, height + 1 from path join nodes on path.id = nodes.id
        where nodes.parent is not null and height < {MAX_MESSAGES}
    )
    select number, height, path.id, nodes.id is null, said from path left join nodes on path.id = nodes.id
    order by number, height desc
"""  # noqa: S608 # a number of ours


class Joined(NamedTuple):
    """What stands elsewhere in the log and belongs to an item."""

    votes: Sequence[Mapping[str, Any]] = ()
    """Votes on this answer, as noted."""
    lost: RejectedRowError | None = None
    """Why this vote has no answer."""
    is_repeated: bool = False
    """Whether the same answer, under the same id, stands in the log before."""
    messages: Sequence[Mapping[str, Any]] | RejectedRowError | None = None
    """Of a message in a table of them, the conversation up to it."""
    better: Sequence[Mapping[str, Any]] = ()
    """Of a message in a table of them, the answers that people ranked before it."""
    again: Sequence[Mapping[str, Any]] = ()
    """The answer that took its place when it was asked for again."""
    before: Sequence[Mapping[str, Any]] | RejectedRowError | None = None
    """Of a turn in a row of its own, the turns before it."""


class Joins:
    """Finds what belongs together.

    Args:
        store: holds what is noted.
        times: reads the times of messages.
    """

    def __init__(self, store: EventStore, times: Times) -> None:
        self._times = times
        self._unread_time: str | None = None
        self.scores: Counter[str] = Counter()
        """Votes that stand apart, by the name of their score."""
        self.num_votes = 0
        self.holds_voted_answers = False
        """Whether some answers have a vote in their own record."""
        text, number = pa.string(), pa.int64()
        self._store = store
        self._ids = store.table("ids", name=text, number=number, text=pa.binary(), is_own=pa.bool_())
        self._votes = store.table("votes", number=number, targets=text, vote=text)
        self._wanted = store.table("wanted", number=number, rank=number, name=text)
        self._turns = store.table("turns", number=number, conversation=text, turn=pa.float64(), asked=text, answer=text)
        self._before = store.table("before", number=number, turns=text, error=text)
        self._messages = store.table(
            "messages",
            place_in_log=number, number=number, id=text, conversation=text, parent=text, said=text, place=pa.float64(),
            time=pa.float64(), rank=pa.float64(), is_answer=pa.bool_(),
            is_voted=pa.bool_(), label=pa.bool_(),
        )  # fmt: skip
        self._num_messages = 0
        self._names_parents = False

    # ---- noting ----

    def add_answer(self, number: int, item: Item) -> None:
        """Note an answer under its ids."""
        text = canonical_json(as_json_value([item.cells.get(name) for name in ("prompt", *ANSWERS)]))
        self._add_ids(number, text, item.own_ids, item.other_ids)

    def _add_ids(self, number: int, text: str, own: Sequence[str], others: Sequence[str]) -> None:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in dict.fromkeys((*own, *(f"*:{name.partition(':')[2]}" for name in own))):
            self._ids.add(name, number, digest, True)
        for name in others:
            self._ids.add(f"part:{name}", number, digest, False)

    def add_vote(self, number: int, targets: Sequence[str], vote: Mapping[str, Any]) -> None:
        """Note a vote that stands apart from its answer."""
        self.num_votes += 1
        self._votes.add(number, " or ".join(targets), canonical_json(vote))
        names = dict.fromkeys(name for target in targets for name in _spellings(target))
        for rank, name in enumerate(names):
            self._wanted.add(number, rank, name)

    def add_turn(self, number: int, conversation: str, turn: float, *, asked: str, answer: Any) -> None:
        """Note a turn that is a row of its own."""
        self._turns.add(number, conversation, turn, asked, canonical_json(as_json_value(answer)))

    def add_message(self, record: Mapping[str, Any], number: int | None, *, vote: Any) -> None:
        """Note a message of a table of them, and the vote on it.

        Args:
            record: the message.
            number: that of the item of an answer; None of what others said.
            vote: as logged beside it; None without one.
        """
        name, parent = message_id(record) or "", parent_of(record)
        said = None if speaker_of(record) is None else canonical_json(as_json_value(plain_message(record)))
        conversation = first_of(record, CONVERSATION_IDS)
        time = record.get(first_of(record, _TIMES) or "")
        seconds, rank = self._times.seconds(time), rating_of(record.get("rank"))
        if seconds is None and not is_missing(time):
            self._unread_time = self._unread_time or f"{time!r:.60}{self._times.why_unread(time)}"
        self._names_parents |= first_of(record, _PARENTS) is not None
        self._messages.add(
            self._num_messages,
            number,
            name,
            str(record.get(conversation or "")),
            parent,
            said,
            number_of(record.get(first_of(record, _PLACES) or "")) or 0.0,
            seconds or 0.0,
            None if rank is None else rank.number,
            number is not None and why_broken(record) is None,
            vote is not None,
            None if vote is None else vote_or_none(vote, VoteWords()),
        )
        self._num_messages += 1
        if number is not None:
            self._add_ids(number, canonical_json([said, parent]), (f"message:{name}", f"any:{name}"), ())

    # ---- finding ----

    def join(self) -> None:
        """Find the answer of each vote, and what stands before each turn.

        Raises:
            ValueError: there are votes, and none of them finds its answer.
        """
        self._store.run(_FIND)
        num_lost, targets = self._store.one(f"select count(*), min_by(targets, number) from ({_LOST})")  # noqa: S608 # ours
        if self.num_votes and num_lost == self.num_votes and not self.holds_voted_answers:
            raise ValueError(
                f"none of {self.num_votes:,} votes finds its answer: this is a table of votes without answers, or "
                f"their ids differ (expected an answer with the id {targets}, found none in the log); add the answers "
                "to the log"
            )
        if self._num_messages:
            self._store.run(_NODES)
            if not self._names_parents:
                if self._unread_time is not None:
                    raise ValueError(
                        f"messages that name none before them follow each other by their times, and one can't be read: "
                        f"expected one as in 2026-01-31T12:00 or in seconds, found {self._unread_time}"
                    )
                self._store.run(_FOLLOW)
        self._add_turns_before()

    def in_step(self) -> "JoinsInStep":
        """What was found, for somebody who goes through the items in order."""
        return JoinsInStep(self._store, has_messages=self._num_messages > 0)

    def _add_turns_before(self) -> None:
        rows = self._store.rows(
            "select conversation, number, turn, asked, answer from turns order by conversation, turn, number"
        )
        for _, turns in itertools.groupby(rows, key=lambda row: row[0]):
            earlier: list[list[tuple[str, str]]] = []
            for _, same in itertools.groupby(turns, key=lambda row: row[2]):
                held = list(same)
                for conversation, number, turn, asked, _ in held:
                    self._add_before(number, asked, earlier, f"turn {turn:g} of {conversation}")
                earlier.append(list(dict.fromkeys((asked, answer) for *_, asked, answer in held)))

    def _add_before(self, number: int, asked: str, earlier: Sequence[Sequence[tuple[str, str]]], where: str) -> None:
        """Note the turns before a question, unless there are none or it repeats them itself."""
        if not earlier or any(before in asked for said in earlier for before, _ in said):
            return
        turns = []
        for said in earlier:
            before, answer = said[0][0], json.loads(said[0][1])
            if len(said) > 1 or not isinstance(answer, str):
                self._before.add(number, None, f"expected one answer to each turn before {where}")
                return
            turns += [{"role": "user", "content": before}, {"role": "assistant", "content": answer}]
        self._before.add(number, canonical_json(turns), None)


class JoinsInStep:
    """What belongs to each item, asked for in the order of their numbers.

    Args:
        store: where it was noted.
        has_messages: whether the log has tables of messages.
    """

    def __init__(self, store: EventStore, *, has_messages: bool) -> None:
        self._votes = InStep(store.rows(_VOTES_ON), lambda _, __, vote: json.loads(vote))
        self._lost = InStep(store.rows(_LOST), _lost)
        self._repeated = InStep(store.rows(_REPEATED), lambda number: number)
        self._before = InStep(store.rows("select * from before order by number"), _before)
        better = store.rows(_BETTER) if has_messages else iter(())
        self._better = InStep(better, lambda _, said: json.loads(said))
        again = store.rows(_AGAIN) if has_messages else iter(())
        self._again = InStep(again, lambda _, said: json.loads(said))
        paths = store.rows(_PATHS) if has_messages else iter(())
        grouped = ((number, list(path)) for number, path in itertools.groupby(paths, key=lambda row: row[0]))
        self._paths = InStep(grouped, lambda _, path: _path(path))

    def of(self, number: int) -> Joined:
        """What belongs to an item."""
        lost, before, path = self._lost.take(number), self._before.take(number), self._paths.take(number)
        return Joined(
            self._votes.take(number),
            lost[0] if lost else None,
            bool(self._repeated.take(number)),
            path[0] if path else None,
            self._better.take(number),
            self._again.take(number),
            before[0] if before else None,
        )


def _lost(_: int, targets: str, is_ambiguous: bool | None) -> RejectedRowError:
    if is_ambiguous:
        return RejectedRowError("ambiguous_vote", f"several answers have the id {targets.partition(' or ')[0]}")
    return RejectedRowError("vote_without_answer", f"expected an answer with the id {targets}, found none in the log")


def _before(_: int, turns: str | None, error: str | None) -> list[dict[str, Any]] | RejectedRowError:
    if turns is None:
        return RejectedRowError("missing_turns", error or "")
    found: list[dict[str, Any]] = json.loads(turns)
    return found


def _path(path: Sequence[tuple[int, int, str, bool, str | None]]) -> list[dict[str, Any]] | RejectedRowError:
    name = path[-1][2]
    if path[0][3] or path[0][1] >= MAX_MESSAGES:
        return RejectedRowError(
            "missing_turns", f"expected the turns before message {name}, found no message {path[0][2]}"
        )
    # Nodes without a speaker, such as the root of a tree, hold no text.
    return [json.loads(said) for *_, said in path if said is not None]


def _spellings(target: str) -> tuple[str, ...]:
    kind, _, value = target.partition(":")
    return (target, f"any:{value}", f"part:{target}", *((f"*:{value}",) if kind != "trace" else ()))


def number_of(value: Any) -> float | None:
    """A cell as a number; None if it is none."""
    value = plain_scalar(value)
    if isinstance(value, bool):
        return float(value)
    try:
        return None if is_missing(value) else float(value)
    except (TypeError, ValueError):
        return None
