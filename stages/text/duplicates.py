"""Rows that say the same again, and rows that contradict each other, found without holding the rows.

The votes on one completion, or on which of two completions is better, are counted in a first pass over the log. Of a
rater who voted on the same thing several times the last vote counts. In the second pass the first row of the majority
stands for all of them.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from stages.contracts.rows import canonical_json
from stages.text.layouts import Feedback
from stages.text.reasons import RejectedRowError
from stages.text.votes import plain_scalar

Vote = Literal["for", "against", "none"]
Fate = Literal["counts", "repeated", "superseded", "retracted"]


class Ballot(NamedTuple):
    """What a row votes on, and how."""

    key: bytes
    """Hash of the prompt and completion, or of the prompt and the two completions in a fixed order."""
    vote: Vote


def ballot_of(feedback: Feedback) -> Ballot:
    """The question that a row answers, and its answer; rows of the same question can repeat or contradict."""
    texts = [canonical_json(completion) for completion in feedback.completions]
    question = canonical_json([feedback.prompt, feedback.tools, sorted(texts)])
    key = hashlib.blake2b(question.encode(), digest_size=16).digest()
    if feedback.layout == "pairs":
        return Ballot(key, "for" if texts[0] < texts[1] else "against")
    return Ballot(key, "none" if feedback.label is None else "for" if feedback.label else "against")


@dataclass
class _Cast:
    """The last vote of a rater on something."""

    time: float | None
    index: int
    vote: Vote | None
    """None if it was taken back."""
    weight: float


class Ballots:
    """The votes of a log by question."""

    def __init__(self) -> None:
        # Per question and vote, what the rows weigh, how many there are and which came first.
        self._counts: dict[bytes, dict[Vote, tuple[float, int, int]]] = {}
        self._last: dict[tuple[bytes, str], _Cast] = {}
        self._fates: dict[int, Fate] = {}

    def add(self, index: int, ballot: Ballot, weight: float = 1.0) -> None:
        """Count the row at `index` of the log."""
        votes = self._counts.setdefault(ballot.key, {})
        total, count, first = votes.get(ballot.vote, (0.0, 0, index))
        votes[ballot.vote] = (total + weight, count + 1, min(first, index))

    def cast(
        self, index: int, key: bytes, vote: Vote | None, *, rater: str, time: float | None, weight: float = 1.0
    ) -> bool:
        """Take in the vote of a rater who may vote again; `close` counts the last one of each.

        Args:
            index: place of the row in the log.
            key: of the ballot.
            vote: None takes back what the rater voted before.
            rater: who voted.
            time: when, in seconds; None takes the order of the log.
            weight: what the vote weighs.

        Returns:
            Whether the rater voted otherwise before, so that it matters which vote is the later one.
        """
        new = _Cast(time, index, vote, weight)
        old = self._last.get((key, rater))
        if old is None:
            self._last[key, rater] = new
            return False
        is_later = new.time >= old.time if new.time is not None and old.time is not None else True
        earlier, later = (old, new) if is_later else (new, old)
        if earlier.vote == later.vote and later.vote is not None:
            # A double click, or an event that two exports hold: the row that stands first in the log stays.
            later, earlier = (_Cast(later.time, min(old.index, new.index), later.vote, later.weight), later)
            self._fates[max(old.index, new.index)] = "repeated"
        else:
            self._fates[earlier.index] = "superseded"
        self._last[key, rater] = later
        return old.vote != new.vote

    def close(self) -> None:
        """Count the last vote of each rater."""
        for (key, _), cast in self._last.items():
            if cast.vote is None:
                self._fates[cast.index] = "retracted"
            else:
                self.add(cast.index, Ballot(key, cast.vote), cast.weight)
        self._last = {}

    def repeat(self, index: int) -> None:
        """Note that the row at `index` is an event that was read before."""
        self._fates[index] = "repeated"

    def fate(self, index: int) -> Fate:
        """Whether the row at `index` counts."""
        return self._fates.get(index, "counts")

    def is_first(self, index: int, ballot: Ballot) -> bool:
        """Whether the row at `index` stands for its question; if not, it repeats the one that does.

        Raises:
            RejectedRowError: the row is outvoted, or as many rows say the opposite.
        """
        votes = self._counts[ballot.key]
        votes_for, votes_against = (votes.get(vote, (0.0, 0, 0))[0] for vote in ("for", "against"))
        if ballot.vote == "none":
            # A row with a vote says all that one without says, unless its votes cancel out.
            return votes_for == votes_against and index == votes["none"][2]
        if votes_for == votes_against:
            raise RejectedRowError(
                "contradictory_labels", f"{votes_for:g} rows vote for this and {votes_against:g} against it"
            )
        winner: Vote = "for" if votes_for > votes_against else "against"
        if ballot.vote != winner:
            more, fewer = max(votes_for, votes_against), min(votes_for, votes_against)
            raise RejectedRowError("outvoted", f"{fewer:g} rows vote like this one and {more:g} the other way")
        return index == votes[winner][2]

    def weights(self, ballot: Ballot) -> tuple[float, float]:
        """What the votes for and against a question weigh."""
        votes = self._counts[ballot.key]
        return votes.get("for", (0.0, 0, 0))[0], votes.get("against", (0.0, 0, 0))[0]

    def num_contradictory(self) -> tuple[int, int]:
        """Questions with votes both ways: how many the majority decided, and how many were tied."""
        decided = tied = 0
        for votes in self._counts.values():
            if "for" in votes and "against" in votes:
                is_tied = votes["for"][0] == votes["against"][0]
                tied += is_tied
                decided += not is_tied
        return decided, tied


def seconds_of(time: Any) -> float | None:
    """A time as seconds since 1970; None if it can't be read. Times without a zone are taken as UTC."""
    time = plain_scalar(time)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if isinstance(time, str):
        try:
            found = datetime.fromisoformat(time.strip())
        except ValueError:
            try:
                time = float(time)
            except ValueError:
                return None
        else:
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if isinstance(time, bool) or not isinstance(time, int | float):
        return None
    # Milliseconds and finer, told apart by their size.
    while abs(time) > 1e11:
        time /= 1000
    return float(time)
