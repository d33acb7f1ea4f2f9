"""Votes: what people write for thumbs up and thumbs down, read as one truth value or refused."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

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
    ("great", "terrible"),
    ("good", "poor"),
    ("gut", "schlecht"),
    ("ja", "nein"),
    ("daumen_hoch", "daumen_runter"),
    ("hilfreich", "nicht_hilfreich"),
    ("bueno", "malo"),
    ("s\u00ed", "no"),
    ("oui", "non"),
    ("bon", "mauvais"),
    ("chosen", "rejected"),
    ("excellent", "awful"),
    ("love", "hate"),
    ("loved", "hated"),
    ("approve", "disapprove"),
    ("approved", "disapproved"),
    ("satisfied", "dissatisfied"),
    ("useful", "useless"),
    ("pass", "fail"),
    ("passed", "failed"),
    ("relevant", "irrelevant"),
    ("\N{HEAVY CHECK MARK}", "\N{HEAVY BALLOT X}"),
    ("\N{CHECK MARK}", "\N{BALLOT X}"),
)
UP = frozenset(up for up, _ in WORDS)
DOWN = frozenset(down for _, down in WORDS) | {f"not_{up}" for up, _ in WORDS if up.isalpha() and len(up) > 3}
NO_VOTE = frozenset({"none", "null", "nil", "n/a", "na", "nan", "no_vote", "no_rating", "unrated", "-", "undefined"})
"""Words for that nobody voted, or took the vote back."""
_RETRACTED = frozenset({"retracted", "removed", "deleted", "cleared", "cancelled", "canceled", "withdrawn", "undone"})
_NEITHER = frozenset({"neutral", "neither", "mixed", "unsure", "abstain"})
# Variation selectors and skin tones, which change how a thumb looks and not where it points.
_LOOKS = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")
_SHORTCODE = re.compile(r":([^\s:]+):(?::skin-tone-\d:)?")
_SHORTCODES = {"+1": "thumbs_up", "-1": "thumbs_down"}
_VALUE_KEYS = ("value", "rating", "score", "vote", "label", "thumb", "thumbs", "feedback", "type", "name")
_TOP_KEYS = ("max", "max_value", "max_rating", "max_score", "maximum", "scale", "out_of", "best")

_DIGITS = r"[+-]?\d+(?:[.,]\d{1,2})?"
_UNIT = r"(?:stars?|points?|pts?|stern(?:en?)?|punkt(?:en?)?|estrellas?|puntos?|[e\u00e9]toiles?|stelle|\u2605|\u2b50)"
_SCALED = (
    re.compile(rf"(?P<number>{_DIGITS})\s?{_UNIT}", re.IGNORECASE),
    re.compile(rf"(?P<number>{_DIGITS})\s?(?:/|out of|of|von|sur|de|su)\s?(?P<top>\d+)(?:\s?{_UNIT})?", re.IGNORECASE),
    re.compile(rf"(?P<number>{_DIGITS})\s?(?P<percent>%)"),
    # A number with what it stands for: "5 - very good", "(5) very good".
    re.compile(rf"\(?(?P<number>{_DIGITS})\s?[-\u2013:.)(]\s?[^\W\d_][^\d]*"),
)
_FULL, _HOLLOW = "\u2605\u2b50\U0001f31f", "\u2606"

# What most cells hold; the check is made for every one of them.
_PLAIN = frozenset({str, int, float, bool, type(None), dict, list})
_SCALARS = frozenset({int, float, bool, type(None)})
_OPENING = frozenset("{[ \t\r\n")
_MAX_RATING = 60

Meaning = Literal["desired", "undesired", "none"]


class Rating(NamedTuple):
    """A vote that is a number."""

    number: float
    scale: str | None = None
    """Of one that says more than the number: "%", "of 5", or "" for stars and words that don't say how many there can
    be. None of a plain number."""


class VoteWords(NamedTuple):
    """How the votes of a log are written, as far as params say it."""

    threshold: float | None = None
    """Smallest rating that is desired; None where the log has no ratings."""
    undesired_threshold: float | None = None
    """Largest rating that is undesired; ratings between the two say neither. None takes all below `threshold`."""
    ignored: Sequence[float | str] = ()
    """Votes that say neither, such as the middle of a scale."""
    words: Mapping[str, Meaning] = {}
    """What words mean that aren't known, or mean something else here."""


def parse_vote(
    value: Any,
    *,
    threshold: float | None = None,
    ignored: Sequence[float | str] = (),
    spelling: VoteWords | None = None,
) -> bool:
    """Whether a vote says that the completion is desired.

    Truth values of Python and numpy count as they are, and so do words such as "up" and "no", in any case. Numbers,
    also as text, are compared with `threshold`; without one they must be 1 (desired), 0 or -1 (undesired). A vote may
    be wrapped, as in {"value": 1} and ["up"].

    Args:
        value: the vote as logged.
        threshold: smallest rating that is desired; None where the log has no ratings.
        ignored: votes that say neither, such as the middle of a scale.
        spelling: all that params say about votes, in place of the two before.

    Raises:
        RejectedRowError: there is no vote, one of `ignored`, or one that can't be read.
    """
    spelling = spelling or VoteWords(threshold, None, ignored)
    value = unwrapped(value)
    word = word_of(value)
    meaning = spelling.words.get(word or str(value).casefold(), spelling.words.get(str(value)))
    rating = rating_of(value)
    number = None if rating is None else rating.number
    if meaning == "none" or (meaning is None and (word in _NEITHER or _is_ignored(value, number, spelling.ignored))):
        raise RejectedRowError("ignored_label", f"{value!r:.80} says neither desired nor undesired")
    if meaning is not None:
        return meaning == "desired"
    if is_no_vote(value):
        raise RejectedRowError(
            "no_label", "expected a vote, found none; `layout: demonstrations` takes completions without votes"
        )
    if isinstance(value, bool):
        return value
    if rating is not None:
        return _from_rating(rating, value, spelling)
    if word in UP or word in DOWN:
        return word in UP
    raise RejectedRowError(
        "unknown_label", f"expected a vote such as true, 0, 1, up, down, yes or no, found {value!r:.80}"
    )


def vote_or_none(value: Any, spelling: VoteWords) -> bool | None:
    """Whether a vote says that the completion is desired; None of what can't be read, and of no vote."""
    try:
        return parse_vote(value, spelling=spelling)
    except RejectedRowError:
        return None


def unwrapped(value: Any) -> Any:
    """A vote out of the list or object that it is logged in, if it is the only one there."""
    for _ in range(4):
        value = plain_scalar(value)
        if type(value) in _SCALARS or (type(value) is str and value[:1] not in _OPENING):
            return value
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(value)
            except ValueError:
                return value
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        elif isinstance(value, Mapping) and (key := _vote_key(value)):
            value = _with_scale(value, key)
        else:
            return value
    return value


def _vote_key(value: Mapping[str, Any]) -> str | None:
    # A score beside its name (Langfuse, LangSmith) has both; the first of the keys is the vote.
    # Of a category of Langfuse the number is its place in a list, and the word is what was said.
    words = [key for key in ("stringValue", "string_value") if not is_missing(value.get(key))]
    found = words + [key for key in _VALUE_KEYS if key in value and not isinstance(value[key], list)]
    return found[0] if found else None


def _with_scale(value: Mapping[str, Any], key: str) -> Any:
    """A vote below a key; of a number that stands beside the largest there can be, such as 1 of 5, both."""
    number = _number(value[key])
    top = next((found for name in _TOP_KEYS if (found := _top_of(value.get(name))) is not None), None)
    return value[key] if number is None or top is None or top == 1 else f"{number:g}/{top:g}"


def _top_of(value: Any) -> float | None:
    """The end of a scale: a number, or the last one of "1-5" and [1, 5]."""
    if isinstance(value, str) and (ends := re.fullmatch(r"\d+\s?(?:-|\u2013|to)\s?(\d+)", value.strip())):
        value = ends[1]
    elif isinstance(value, list | tuple) and value:
        value = value[-1]
    return _number(value)


def word_of(value: Any) -> str:
    """A vote as a word: lower case, words joined by underscores, thumbs of one colour; empty for what is no text."""
    if isinstance(value, bool) or not isinstance(value, str):
        return ""
    if shortcode := _SHORTCODE.fullmatch(value.strip()):
        return _SHORTCODES.get(shortcode[1], shortcode[1])
    return "_".join(_LOOKS.sub("", value).strip(" .!").casefold().replace("-", " ").split()) or value.strip()


def is_no_vote(value: Any) -> bool:
    """Whether a vote says that nobody voted, or that a vote was taken back."""
    value = unwrapped(value)
    word = word_of(value)
    return is_missing(value) or value in ([], {}) or word in NO_VOTE or word in _RETRACTED


def is_retracted(value: Any) -> bool:
    """Whether a word, such as the kind of an event, says that a vote was taken back."""
    words = set(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(value)).casefold()))
    return bool(words & (_RETRACTED | {"retract", "remove", "delete", "clear", "undo", "unvote", "unrate", "withdraw"}))


def rating_of(value: Any) -> Rating | None:
    """The number of a vote, written plainly or as in "4 stars", "4/5", "80 %" and "3,5"; None of another vote."""
    value = unwrapped(value)
    number = _number(value)
    if number is not None:
        return Rating(number)
    if not isinstance(value, str) or len(value) > _MAX_RATING:
        return None
    text = _LOOKS.sub("", value).strip()
    stars = sum(text.count(sign) for sign in _FULL)
    if stars + text.count(_HOLLOW) == len(text) > 0:
        return Rating(stars, f"of {len(text)}" if _HOLLOW in text else "")
    if (found := next((match for form in _SCALED if (match := form.fullmatch(text))), None)) is None:
        return Rating(float(text.replace(",", "."))) if re.fullmatch(_DIGITS, text) else None
    named = found.groupdict()
    scale = f"of {int(named['top'])}" if named.get("top") else named.get("percent") or ""
    return Rating(float(named["number"].replace(",", ".")), scale)


def takes_threshold(rating: Rating) -> bool:
    """Whether only a threshold says what a number means: one of a scale, and any but 1, 0 and -1."""
    return rating.scale is not None or rating.number not in (0.0, 1.0, -1.0)


def plain_scalar(value: Any) -> Any:
    """A scalar of numpy as the Python value that it stands for; anything else as it is."""
    if type(value) in _PLAIN:
        return value
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN (what pandas writes for nothing) or empty text."""
    if type(value) is str:
        return not value
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def is_number(value: Any) -> bool:
    """Whether a vote is a number, or text that is or names one; truth values are none."""
    return rating_of(value) is not None


def is_minus_one(value: Any) -> bool:
    """Whether a vote is written as -1, so that 0 in the same log may mean that nobody voted."""
    return _number(unwrapped(value)) == -1


def is_zero(value: Any) -> bool:
    """Whether a vote is written as the number 0."""
    return _number(unwrapped(value)) == 0


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


def _from_rating(rating: Rating, value: Any, spelling: VoteWords) -> bool:
    number = rating.number
    if spelling.threshold is not None:
        low = spelling.undesired_threshold
        if low is not None and low < number < spelling.threshold:
            raise RejectedRowError("ignored_label", f"{value!r} is between undesired_threshold and label_threshold")
        return number >= spelling.threshold
    if not takes_threshold(rating):
        return number == 1.0
    raise RejectedRowError(
        "unknown_label",
        f"expected 1, 0 or -1, found the number {value!r:.40}; label_threshold says from which rating on a completion "
        "is desired",
    )
