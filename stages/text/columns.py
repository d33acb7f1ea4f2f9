"""What columns of a log may be: prompts and answers, two answers, the word that names the better one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from stages.text import column_names as names
from stages.text.layouts import parse_conversation as parsed
from stages.text.votes import VoteWords, word_of

Place = Literal["first", "second", "tie"]
NONE = "none"

PROMPTS = ("prompt", "instruction", "question", "query", "user_prompt", "user_message", "user_input", "input")
ANSWERS = (
    *("completion", "response", "answer", "output", "assistant_response", "model_output", "model_response"),
    *("generation", "bot_response", "reply", "assistant_message"),
)
CONVERSATIONS = ("messages", "conversations")
SIDES = re.compile(r"(?P<base>.*?)_?(?P<side>a|b|0|1|2|left|right|first|second)")
_BASES = frozenset(
    {"output", "response", "answer", "completion", "candidate", "generation", "conversation", "reply", "text", "option"}
    | {"summary", "human_ref", "result", "assistant", "model_output", "model_response", "message", "continuation"}
)
OTHER_SIDE = {"a": "b", "1": "2", "0": "1", "left": "right", "first": "second"}
WINNERS = (
    "winner",
    "preference",
    "preferred",
    "choice",
    "comparison",
    "better",
    "better_response_id",
    "safer_response_id",
    "verdict",
    "label",
    "labels",
)


class Settings(NamedTuple):
    """What params say about columns."""

    columns: Mapping[str, str | None] = {}
    prompt_parts: Sequence[str] = ()
    winners: Mapping[str, Place] = {}
    spelling: VoteWords = VoteWords()

    def is_left_out(self, name: str) -> bool:
        """Whether params say that a column is to be read by nothing."""
        return name in self.columns and self.columns[name] in (None, NONE)

    def named(self) -> dict[str, str]:
        """By our name of a column, the log's."""
        return {name: path for name, path in self.columns.items() if path not in (None, NONE)}


class Shape(NamedTuple):
    """Which columns of a log are read, and as what."""

    names: Mapping[str, str]
    """By our name, the log's; dots lead into objects."""
    parts: tuple[str, ...] = ()
    """Columns that make up the prompt together."""
    pair: tuple[str, str] | None = None
    """The columns of two answers of which another column says which is better."""
    winner: str | None = None
    places: Mapping[str, Place] = {}
    """What the words of `winner` mean."""
    scores: tuple[str, str] | None = None
    """Columns with the scores of the two answers, of which the one with the larger is better."""
    one_hot: Mapping[str, Place] = {}
    """Columns of which the one that is true says which answer is better."""
    models: tuple[str, str] | None = None
    """Columns with the models of the two answers, where `winner` names a model."""
    counts: tuple[str, str] | None = None
    """Columns with the numbers of votes for and against."""
    rater: str | None = None
    time: str | None = None
    conversation: str | None = None
    turn: str | None = None
    correction: str | None = None
    """What somebody wrote in place of the answer."""
    has_answers: bool = True
    """Whether prompts and completions are text, and no ids of text that stands elsewhere."""
    said: tuple[str, ...] = ()
    """What was understood without a setting, a sentence each."""
    unread: Mapping[str, int] = {}
    """Columns that nothing reads, and how many rows have them."""


def has(row: Mapping[str, Any], path: str) -> bool:
    """Whether a row has a column; dots lead into objects."""
    if path in row:
        return True
    head, _, rest = path.partition(".")
    inner = parsed(row.get(head))
    return bool(rest) and isinstance(inner, Mapping) and has(inner, rest)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column; dots lead into objects. None where there is none."""
    if path in row:
        return row[path]
    head, _, rest = path.partition(".")
    inner = parsed(row.get(head))
    return value_at(inner, rest) if rest and isinstance(inner, Mapping) else None


def side_of(spelled: str) -> tuple[str, str] | None:
    """What a name of one of two answers consists of: `output_1` is `output` and `1`; None of another name."""
    match = SIDES.fullmatch(spelled)
    return (match["base"], match["side"]) if match and match["base"].rstrip("_") in _BASES else None


def two_answers(row: Iterable[str]) -> tuple[str, str] | None:
    """The names of two answers that differ in their side, such as `answer_1` and `answer_2`; None without such."""
    spelled = {names.canonical(name): name for name in row}
    for name, first in spelled.items():
        side = side_of(name)
        if side is not None and side[1] in OTHER_SIDE:
            second = spelled.get(f"{name[: len(name) - len(side[1])]}{OTHER_SIDE[side[1]]}")
            if second is not None:
                return first, second
    return None


def as_number(word: str) -> float | None:
    """A word as a number, truth values as 1 and 0; None of another word."""
    try:
        return float(word)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(word.casefold())


def place_of_word(word: str) -> Place | None:
    """Which of two answers a word names; None for an unknown one."""
    spelled = names.canonical(word_of(word) or word)
    words = spelled.split("_")
    if {"tie", "tied", "both", "bothbad", "bothgood", "neither", "equal", "equally", "draw", "same", "none"} & set(
        words
    ):
        return "tie"
    last = words[-1]
    if last in ("a", "1", "left", "first", "chosen"):
        return "first"
    return "second" if last in ("b", "2", "right", "second", "rejected") else None
