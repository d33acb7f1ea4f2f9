"""Votes: what people write for thumbs up and thumbs down, read as one truth value or refused."""

import math
from collections.abc import Sequence
from typing import Any

from stages.text.reasons import RejectedRowError

# Desired and undesired, one scale of two words a line.
WORDS = (
    ("up", "down"),
    ("thumbs_up", "thumbs_down"),
    ("thumbsup", "thumbsdown"),
    ("\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"),
    ("\N{WHITE HEAVY CHECK MARK}", "\N{CROSS MARK}"),
    ("upvote", "downvote"),
    ("yes", "no"),
    ("y", "n"),
    ("true", "false"),
    ("t", "f"),
    ("good", "bad"),
    ("like", "dislike"),
    ("liked", "disliked"),
    ("positive", "negative"),
    ("pos", "neg"),
    ("desired", "undesired"),
    ("desirable", "undesirable"),
    ("accept", "reject"),
    ("accepted", "rejected"),
    ("acceptable", "unacceptable"),
    ("correct", "incorrect"),
    ("right", "wrong"),
    ("helpful", "unhelpful"),
)
UP = frozenset(up for up, _ in WORDS)
DOWN = frozenset(down for _, down in WORDS)


def parse_vote(value: Any, *, threshold: float | None = None, ignored: Sequence[float | str] = ()) -> bool:
    """Whether a vote says that the completion is desired.

    Truth values of Python and numpy count as they are, and so do words such as "up" and "no", in any case. Numbers,
    also as text, are compared with `threshold`; without one they must be 1 (desired), 0 or -1 (undesired).

    Args:
        value: the vote as logged.
        threshold: smallest rating that is desired; None where the log has no ratings.
        ignored: votes that say neither, such as the middle of a scale.

    Raises:
        RejectedRowError: there is no vote, one of `ignored`, or one that can't be read.
    """
    value = plain_scalar(value)
    if is_missing(value):
        raise RejectedRowError(
            "no_label", "expected a vote, found none; `layout: demonstrations` takes completions without votes"
        )
    number = _number(value)
    if _is_ignored(value, number, ignored):
        raise RejectedRowError("ignored_label", f"{value!r} is among ignored_labels")
    if isinstance(value, bool):
        return value
    if number is not None:
        return _from_number(number, value, threshold)
    word = "_".join(value.strip().casefold().replace("-", " ").split()) if isinstance(value, str) else ""
    if word in UP or word in DOWN:
        return word in UP
    raise RejectedRowError(
        "unknown_label", f"expected a vote such as true, 0, 1, up, down, yes or no, found {value!r:.80}"
    )


def plain_scalar(value: Any) -> Any:
    """A scalar of numpy as the Python value that it stands for; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN (what pandas writes for nothing) or empty text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def is_minus_one(value: Any) -> bool:
    """Whether a vote is written as -1, so that 0 in the same log may mean that nobody voted."""
    return _number(plain_scalar(value)) == -1


def is_zero(value: Any) -> bool:
    """Whether a vote is written as the number 0."""
    return _number(plain_scalar(value)) == 0


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else None
    if not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_ignored(value: Any, number: float | None, ignored: Sequence[float | str]) -> bool:
    if isinstance(value, bool):
        return False
    # "3" in a CSV file is the 3 of params.yaml.
    return any(value == option or (number is not None and number == option) for option in ignored)


def _from_number(number: float, value: Any, threshold: float | None) -> bool:
    if threshold is not None:
        return number >= threshold
    if number in (0.0, 1.0, -1.0):
        return number == 1.0
    raise RejectedRowError(
        "unknown_label",
        f"expected 1, 0 or -1, found the number {value!r:.40}; label_threshold says from which rating on a completion "
        "is desired",
    )
