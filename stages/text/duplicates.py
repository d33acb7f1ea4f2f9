"""Rows that say the same again, and rows that contradict each other, found without holding the rows.

The votes on one completion, or on which of two completions is better, are counted in a first pass over the log. In
the second pass the first row of the majority stands for all of them.
"""

import hashlib
from typing import Literal, NamedTuple

from stages.contracts.rows import canonical_json
from stages.text.layouts import Feedback
from stages.text.reasons import RejectedRowError

Vote = Literal["for", "against", "none"]


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


class Ballots:
    """The votes of a log by question."""

    def __init__(self) -> None:
        # Per question and vote, how many rows there are and which came first.
        self._counts: dict[bytes, dict[Vote, tuple[int, int]]] = {}

    def add(self, index: int, ballot: Ballot) -> None:
        """Count the row at `index` of the log."""
        votes = self._counts.setdefault(ballot.key, {})
        count, first = votes.get(ballot.vote, (0, index))
        votes[ballot.vote] = (count + 1, first)

    def is_first(self, index: int, ballot: Ballot) -> bool:
        """Whether the row at `index` stands for its question; if not, it repeats the one that does.

        Raises:
            RejectedRowError: the row is outvoted, or as many rows say the opposite.
        """
        votes = self._counts[ballot.key]
        num_for, num_against = (votes.get(vote, (0, 0))[0] for vote in ("for", "against"))
        if ballot.vote == "none":
            # A row with a vote says all that one without says, unless its votes cancel out.
            return num_for == num_against and index == votes["none"][1]
        if num_for == num_against:
            raise RejectedRowError("contradictory_labels", f"{num_for} rows vote for this and {num_against} against it")
        winner: Vote = "for" if num_for > num_against else "against"
        if ballot.vote != winner:
            more, fewer = max(num_for, num_against), min(num_for, num_against)
            raise RejectedRowError("outvoted", f"{fewer} rows vote like this one and {more} the other way")
        return index == votes[winner][1]

    def num_contradictory(self) -> tuple[int, int]:
        """Questions with votes both ways: how many the majority decided, and how many were tied."""
        decided = tied = 0
        for votes in self._counts.values():
            if "for" in votes and "against" in votes:
                is_tied = votes["for"][0] == votes["against"][0]
                tied += is_tied
                decided += not is_tied
        return decided, tied
