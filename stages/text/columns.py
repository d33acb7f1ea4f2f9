"""What the columns of a log are, found by looking at all its rows once; what stays unclear stops the run.

A column that is named like a vote or like a part of the question, and that nothing reads, would change labels or
prompts in silence. So it is read where its meaning is known, and otherwise it is an error that names the setting.
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from stages.contracts.rows import canonical_json
from stages.text import column_names as names
from stages.text.event_store import EventStore
from stages.text.layouts import COLUMNS, as_json_value, is_answered, is_conversation
from stages.text.layouts import parse_conversation as parsed
from stages.text.reasons import RejectedRowError
from stages.text.votes import DOWN, UP, VoteWords, is_missing, is_no_vote, parse_vote, plain_scalar, unwrapped, word_of

Place = Literal["first", "second", "tie"]
NONE = "none"

PROMPTS = ("prompt", "instruction", "question", "query", "user_prompt", "user_message", "user_input", "input")
_ANSWERS = (
    *("completion", "response", "answer", "output", "assistant_response", "model_output", "model_response"),
    *("generation", "bot_response", "reply", "assistant_message"),
)
_CONVERSATIONS = ("messages", "conversations")
_SIDES = re.compile(r"(?P<base>.*?)_?(?P<side>a|b|0|1|2|left|right|first|second)")
_BASES = frozenset(
    {"output", "response", "answer", "completion", "candidate", "generation", "conversation", "reply", "text", "option"}
    | {"summary", "human_ref", "result", "assistant", "model_output", "model_response", "message", "continuation"}
)
_FIRST = {"a": "b", "1": "2", "0": "1", "left": "right", "first": "second"}
_WINNERS = (
    "winner",
    "preference",
    "preferred",
    "choice",
    "comparison",
    "better",
    "better_response_id",
    "verdict",
    "label",
    "labels",
)
_FROM_ZERO: Mapping[float, Place] = {0.0: "first", 1.0: "second"}
_FROM_ONE: Mapping[float, Place] = {0.0: "tie", 1.0: "first", 2.0: "second"}
_WORDS = (UP | DOWN) - {"yes", "no", "y", "n", "t", "f", "true", "false", "right", "positive", "negative", "neg", "pos"}
_WORDS -= {"ja", "nein", "s\u00ed", "oui", "non"}
_MAX_VALUES = 60
_MAX_WORD = 24
_MAX_CHOICES = 11
"""From 0 to 10 is the longest scale that people are asked to choose from."""
_MAX_SIGNATURES = 2000
_ID = re.compile(r"\d+|[0-9a-f]{8}[0-9a-f-]{8,}", re.IGNORECASE)
_NO_TEXT = re.compile(r"\S*\d\S*|https?://\S+|\S+@\S+|[\d\s:.,+/TZ-]+", re.IGNORECASE)


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


@dataclass
class _Column:
    """What is known of a column."""

    rows: int = 0
    values: Counter[str] = field(default_factory=Counter)
    has_more: bool = False
    texts: int = 0
    """Rows with text of several words."""
    numbers: int = 0
    objects: int = 0
    ids: int = 0
    clear: int = 0
    """Votes that can be read without a setting."""
    lists: int = 0
    """Cells that hold several votes."""
    truths: int = 0
    """Values that are true or false."""
    words: int = 0
    """Values that are words for votes, such as "up", whatever the column is called."""
    beside_pair: Counter[str] = field(default_factory=Counter)
    """Values in rows that have a chosen and a rejected answer."""

    def add(self, value: Any, spelling: VoteWords | None) -> None:
        value = plain_scalar(value)
        self.rows += 1
        if isinstance(value, Mapping | list | tuple):
            self.objects += 1
            if names.votes_in(value) is not None:
                self.lists += 1
                spelling = None
            value = unwrapped(value)
        text = str(value)
        self.texts += isinstance(value, str) and len(text.split()) > 1
        self.ids += _ID.fullmatch(text) is not None
        if len(self.values) < _MAX_VALUES or text in self.values:
            self.values[text[:80]] += 1
        else:
            self.has_more = True
        self.truths += isinstance(value, bool)
        self.words += len(text) < _MAX_WORD and word_of(value) in _WORDS
        if spelling is not None:
            self.clear += _is_clear(value, spelling)

    def add_beside_pair(self, value: Any) -> None:
        word = str(unwrapped(value))[:80]
        if not is_missing(plain_scalar(value)) and (word in self.beside_pair or len(self.beside_pair) < _MAX_VALUES):
            self.beside_pair[word] += 1

    def is_choice(self, num_rows: int) -> bool:
        """Whether its values are few short words or numbers, as those of buttons and scales are."""
        if self.objects or self.texts > self.rows / 2 or self.has_more or len(self.values) > _MAX_CHOICES:
            return False
        is_short = all(len(value) < _MAX_WORD for value in self.values)
        is_repeated = 2 * len(self.values) <= self.rows if len(self.values) > 1 else self.rows < num_rows
        return is_short and is_repeated

    def shown(self) -> str:
        common = sorted(self.values.items(), key=lambda item: (-item[1], item[0]))[:8]
        listed = ", ".join(f"{value} ({count:,})" for value, count in common)
        return listed + (" and others" if self.has_more or len(self.values) > len(common) else "")


def _is_clear(value: Any, spelling: VoteWords) -> bool:
    try:
        parse_vote(value, spelling=spelling)
    except RejectedRowError as error:
        return error.reason in ("no_label", "ignored_label")
    return True


class Survey:
    """Looks at every row of a log and says what its columns are.

    Args:
        settings: what params say.
        store: holds what was asked how often and with what beside it.
    """

    def __init__(self, settings: Settings, store: EventStore) -> None:
        self.settings = settings
        self._store = store
        self._beside = store.table("beside", prompt=pa.binary(), name=pa.string(), digest=pa.binary())
        self._columns: dict[str, _Column] = {}
        self._found: set[str] = set()
        self._signatures: set[frozenset[str]] = set()
        self._disagree: Counter[str] = Counter()
        self._against: Counter[tuple[str, str]] = Counter()
        self.num_rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row of columns."""
        self.num_rows += 1
        if len(self._signatures) < _MAX_SIGNATURES:
            present = {name for name, value in row.items() if not is_missing(plain_scalar(value))}
            self._signatures.add(frozenset(present))
        named = self.settings.named()
        self._found |= {path for path in named.values() if has(row, path)}
        self._found |= {path for path in self.settings.prompt_parts if has(row, path)}
        for name, value in row.items():
            if not is_missing(plain_scalar(value)) and value not in ([], {}):
                vote = self.settings.spelling if names.is_vote(name) or name in named.values() else None
                self._columns.setdefault(name, _Column()).add(value, vote)
        pair = (named.get("chosen", "chosen"), named.get("rejected", "rejected"))
        if not any(is_missing(plain_scalar(row.get(name))) for name in pair):
            for name, value in row.items():
                if name in self._columns and (names.is_vote(name) or names.canonical(name) in _WINNERS):
                    self._columns[name].add_beside_pair(value)
                worse = name.replace("chosen", "rejected") if "chosen" in name and names.is_vote(name) else name
                if worse != name and (_as_score(value) or 0.0) < (_as_score(row.get(worse)) or 0.0):
                    self._against[name, worse] += 1
        self._add_nested(row)
        self._compare_prompts(row, named)
        self._compare_votes(row, named)

    def _add_nested(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, Mapping) and not names.is_vote(name):
                for inner, item in value.items():
                    if names.is_vote(inner) and not is_missing(plain_scalar(item)):
                        self._columns.setdefault(f"{name}.{inner}", _Column()).add(item, self.settings.spelling)

    def _compare_prompts(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        asked = {named.get("prompt", ""), *PROMPTS, *self.settings.prompt_parts, "system", "history", "context"}
        key_of = {name: as_json_value(value) for name, value in row.items() if name in asked}
        for name in (*_CONVERSATIONS, named.get("messages", "")):
            turns = parsed(row.get(name))
            if isinstance(turns, list):
                key_of[name] = as_json_value(turns[:-1])
        if not key_of:
            return
        beside = [name for name in row if name not in key_of and self._may_differ(name, named)]
        held = {name: row[name] for name in beside if _holds_text(row[name])}
        key = _digest(canonical_json(key_of)) if held else b""
        for name, value in held.items():
            text = value if isinstance(value, str) else canonical_json(as_json_value(value))
            self._beside.add(key, name, _digest(text))

    def _may_differ(self, name: str, named: Mapping[str, str]) -> bool:
        """Whether a column that differs between rows of one prompt may be a part of the question."""
        if name in named.values() or name in COLUMNS or self.settings.is_left_out(name):
            return False
        spelled = names.canonical(name)
        if spelled in _ANSWERS or spelled in names.CORRECTIONS:
            return False
        return not (names.is_vote(name) or names.is_metadata(name) or _side_of(spelled))

    def _compare_votes(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        if "label" in named or self.settings.is_left_out("label") or is_missing(plain_scalar(row.get("label"))):
            return
        label = _read(row["label"], self.settings.spelling)
        for name, value in row.items():
            if name != "label" and names.is_vote(name) and label is not None:
                other = _read(value, self.settings.spelling)
                self._disagree[name] += other is not None and other != label

    def has_rows_without(self, answers: Iterable[str]) -> bool:
        """Whether some row has none of the columns of answers."""
        return bool(self._signatures) and any(signature.isdisjoint(answers) for signature in self._signatures)

    def shape(self) -> Shape:
        """What the columns are.

        Raises:
            ValueError: a setting names no column, or a column may change labels or prompts and nothing reads it.
        """
        differing = self._store.rows(
            """select name from (select prompt, name from beside group by all having count(distinct digest) > 1)
            group by name"""
        )
        return _Judge(
            self.settings,
            self._columns,
            self._found,
            differing={name for (name,) in differing},
            disagree=self._disagree,
            against=self._against,
            num_rows=self.num_rows,
        ).shape()


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _read(value: Any, spelling: VoteWords) -> bool | None:
    try:
        return parse_vote(value, spelling=spelling)
    except RejectedRowError:
        return None


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


def _side_of(spelled: str) -> tuple[str, str] | None:
    match = _SIDES.fullmatch(spelled)
    return (match["base"], match["side"]) if match and match["base"].rstrip("_") in _BASES else None


class _Judge:
    """Decides what the columns are from what was seen of them."""

    def __init__(
        self,
        settings: Settings,
        columns: Mapping[str, _Column],
        found: Iterable[str],
        *,
        differing: Collection[str],
        disagree: Mapping[str, int],
        against: Mapping[tuple[str, str], int],
        num_rows: int,
    ) -> None:
        self.settings, self.columns, self.num_rows = settings, columns, num_rows
        self.found, self.differing, self.disagree = set(found), differing, disagree
        self.against = against
        self.problems: list[str] = []
        self.said: list[str] = []
        self.names = settings.named()
        self.free = [name for name in columns if not settings.is_left_out(name) and name not in self.names.values()]
        self.read: set[str] = set(self.names.values()) | set(settings.prompt_parts)
        self.one_hot: dict[str, Place] = {}

    def shape(self) -> Shape:
        self._check_names()
        pair, winner = self._pair()
        prompt, parts = self._question()
        self._answer(pair)
        counts = None if winner or pair else self._counts()
        if winner is None and counts is None:
            self._label(is_pair=bool(self.one_hot) or (self._has("chosen") and self._has("rejected")))
        self._check_scores()
        places, models = self._places(pair, winner)
        about = {
            name: self.names.get(name) or names.first_of(self._plain(), wanted)
            for name, wanted in (
                ("rater", names.RATERS),
                ("time", names.TIMES),
                ("conversation", names.CONVERSATIONS),
                ("turn", names.TURNS),
            )
        }
        about["correction"] = self.names.get("correction") or names.first_of(self.free, names.CORRECTIONS)
        about = {name: None if self.settings.is_left_out(name) else value for name, value in about.items()}
        if about["correction"]:
            self.said.append(
                f"{about['correction']} holds answers that were mended; pairs_from: [corrections] learns them"
            )
        self._unread_parts(prompt)
        if self.problems:
            listed = "".join(f"\n- {problem}" for problem in self.problems)
            raise ValueError(f"the log can be read in more ways than one; say in ingestion which is right:{listed}")
        self.read |= {value for value in about.values() if value} | set(parts)
        unread = {name: column.rows for name, column in self.columns.items() if name not in self.read | set(COLUMNS)}
        return Shape(
            dict(self.names),
            parts,
            pair,
            winner,
            places,
            self.one_hot,
            models,
            counts,
            about["rater"],
            about["time"],
            about["conversation"],
            about["turn"],
            about["correction"],
            self._has_answers(prompt),
            tuple(self.said),
            dict(sorted(unread.items())),
        )

    def _plain(self) -> list[str]:
        """Columns that may say who, when and where: no text, no objects."""
        return [
            name
            for name in self.free
            if not self.columns[name].objects
            and (self.columns[name].texts < self.columns[name].rows / 2 or names.canonical(name) in names.TIMES)
        ]

    def _has(self, name: str) -> bool:
        return name in self.names or (name in self.columns and not self.settings.is_left_out(name))

    def _check_names(self) -> None:
        for name, path in [*self.names.items(), *(("prompt_parts", path) for path in self.settings.prompt_parts)]:
            if path not in self.found and self.num_rows:
                near = difflib.get_close_matches(path, self.columns, 1, 0.4)
                known = f"nearest is {near[0]}" if near else f"the columns are {', '.join(sorted(self.columns))}"
                self.problems.append(f"columns: {{{name}: {path}}} names a column that no row has; {known}")

    def _take(self, ours: str, name: str, why: str) -> None:
        self.names[ours] = name
        self.read.add(name)
        if name in self.free:
            self.free.remove(name)
        if name != ours:
            self.said.append(f"{name} is read as {ours} ({why}); columns: {{{ours}: {name}}} says so")

    # ---- two answers, one better ----

    def _pair(self) -> tuple[tuple[str, str] | None, str | None]:
        named = (self.names.get("chosen"), self.names.get("rejected"))
        spelled = {names.canonical(name): name for name in self.free}
        found = [
            (spelled[name], spelled[f"{name[: len(name) - len(side[1])]}{_FIRST[side[1]]}"])
            for name in spelled
            if (side := _side_of(name)) and side[1] in _FIRST
            if f"{name[: len(name) - len(side[1])]}{_FIRST[side[1]]}" in spelled
        ]
        texts = [pair for pair in found if self.columns[pair[0]].texts + self.columns[pair[0]].objects]
        is_named = named[0] is not None and named[1] is not None
        if is_named and named[0] and named[1]:
            is_said = "winner" in self.names or "label" in self.names
            winner = self._winner(is_sided=is_said or _side_of(names.canonical(named[0])) is not None)
            if winner and winner not in self.names.values():
                self.said.append(f"{winner} says which of {named[0]} and {named[1]} is better")
            return (named[0], named[1]) if winner else None, winner
        if self._has("chosen") and self._has("rejected"):
            winner = self._winner(is_sided=False)
            return ("chosen", "rejected") if winner else None, winner
        if not (texts or found) or self._has("completion") or self._has("messages"):
            return None, None
        pair = (texts or found)[0]
        self.one_hot = self._one_hot()
        if self.one_hot:
            self.read |= {*pair, *self.one_hot}
            self.said.append(f"of {pair[0]} and {pair[1]} the one is better that {' and '.join(self.one_hot)} say")
            return pair, None
        winner = self._winner(is_sided=True)
        if winner is None:
            self.problems.append(
                f"{pair[0]} and {pair[1]} are two answers, and no column says which is better; "
                f"columns: {{winner: NAME}}, or {{chosen: {pair[0]}, rejected: {pair[1]}}} if the first always is"
            )
            return None, None
        self.read |= set(pair)
        self.said.append(f"{pair[0]} and {pair[1]} are two answers, of which {winner} says which is better")
        return pair, winner

    def _one_hot(self) -> dict[str, Place]:
        """Columns such as `winner_model_a`, `winner_model_b` and `winner_tie`, each true or false."""
        if not {"winner", "label"}.isdisjoint(self.names):
            return {}
        found: dict[str, Place] = {}
        for name in self.free:
            first, _, side = names.canonical(name).partition("_")
            place = place_of_word(side) if first in ("winner", "preferred", "better") and side else None
            is_truth = {value.casefold() for value in self.columns[name].values} <= {"0", "1", "true", "false"}
            if place is not None and is_truth:
                found[name] = place
        return found if {"first", "second"} <= set(found.values()) and len(set(found.values())) == len(found) else {}

    def _winner(self, *, is_sided: bool) -> str | None:
        """The column that says which of two answers is better."""
        chosen = self.names.get("winner") or self.names.get("label")
        if chosen is None:
            spelled = {names.canonical(name): name for name in self.free if not self.columns[name].objects}
            wanted = [name for name in spelled if name in _WINNERS or names.is_vote(name)]
            if not is_sided:
                wanted = [
                    name
                    for name in wanted
                    if self.columns[spelled[name]].beside_pair and {"chosen", "rejected"}.isdisjoint(name.split("_"))
                ]
            sided = [name for name in wanted if not _SIDES.fullmatch(name) and self._is_word(name, spelled[name])]
            ranked = sorted(sided, key=lambda name: (_WINNERS.index(name) if name in _WINNERS else 99, name))
            chosen = spelled[ranked[0]] if ranked else None
        if chosen is None or chosen not in self.columns:
            return None
        words = self.columns[chosen].values if is_sided else self.columns[chosen].beside_pair
        if set(words) <= {"1", "True", "true", "chosen", "1.0"} and (not is_sided or self._has("chosen")):
            # It says of every row that the chosen answer is better.
            return None
        if not is_sided and not self.settings.winners:
            self.problems.append(
                f"{chosen} stands beside chosen and rejected and holds {self.columns[chosen].shown()}; "
                f"columns: {{{chosen}: none}} leaves it out, winners: {{WORD: first, WORD: second}} lets it decide"
            )
            return None
        self.read.add(chosen)
        return chosen

    def _is_word(self, name: str, column: str) -> bool:
        """Whether a column may say in a word which of two answers is better."""
        return name in _WINNERS or not self.columns[column].texts

    def _places(
        self, pair: tuple[str, str] | None, winner: str | None
    ) -> tuple[Mapping[str, Place], tuple[str, str] | None]:
        if pair is None or winner is None:
            return {}, None
        words = list(self.columns[winner].values)
        places = {word: place for word in words if (place := self._place_of(word, words, pair))}
        places |= {word: self.settings.winners[word] for word in words if word in self.settings.winners}
        unknown = {word: self.columns[winner].values[word] for word in words if word not in places}
        if not unknown and not self.columns[winner].has_more:
            return places, None
        models = self._models()
        if models and set(unknown) <= set(self.columns[models[0]].values) | set(self.columns[models[1]].values):
            return places, models
        listed = ", ".join(f"{word} ({count:,})" for word, count in sorted(unknown.items())[:12])
        self.problems.append(
            f"{winner} says which of two answers is better, and its words aren't known: {listed}; "
            f"winners: {{WORD: first, WORD: second, WORD: tie}}"
        )
        return places, None

    def _place_of(self, word: str, words: Sequence[str], pair: tuple[str, str]) -> Place | None:
        numbers = [_as_number(item) for item in words]
        number = _as_number(word)
        if number is None:
            return place_of_word(word)
        known = [item for item in numbers if item is not None]
        side = _side_of(names.canonical(pair[0]))
        is_from_zero = side is not None and side[1] == "0"
        if set(known) <= {0.0, 1.0} or is_from_zero:
            # Of 0 and 1 it is known only beside answers that are numbered so.
            return _FROM_ZERO.get(number) if is_from_zero else None
        if set(known) <= {0.0, 1.0, 2.0}:
            return _FROM_ONE[number]
        if min(known) < 1 or max(known) > 2:
            return None
        return "tie" if number == 1.5 else "first" if number < 1.5 else "second"

    def _models(self) -> tuple[str, str] | None:
        spelled = {names.canonical(name): name for name in self.columns}
        for base in ("model", "generator", "system", "engine", "agent"):
            for first, second in _FIRST.items():
                for between in ("_", ""):
                    found = (f"{base}{between}{first}", f"{base}{between}{second}")
                    if found[0] in spelled and found[1] in spelled:
                        return spelled[found[0]], spelled[found[1]]
        return None

    # ---- question and answer ----

    def _question(self) -> tuple[str | None, tuple[str, ...]]:
        if self.settings.prompt_parts:
            return None, tuple(self.settings.prompt_parts)
        prompt = self.names.get("prompt")
        if prompt is None and not any(map(self._has, _CONVERSATIONS)) and not self._has("prompt"):
            prompt = names.first_of(self.free, PROMPTS)
            if prompt and self._looks_answered():
                self._take("prompt", prompt, "by its name")
        prompt = prompt or ("prompt" if self._has("prompt") else None)
        parts: tuple[str, ...] = ()
        if prompt and names.canonical(prompt) == "instruction":
            spelled = {names.canonical(name): name for name in self.free}
            found = [spelled[name] for name in ("input", "context") if name in spelled]
            if len(found) == 1:
                parts = (prompt, found[0])
                self.read.add(found[0])
                self.said.append(
                    f"{found[0]} follows {prompt} in the prompt; columns: {{{found[0]}: none}} leaves it out"
                )
        for name in ("system", "history"):
            if name in self.free and self._has(name):
                self.read.add(name)
        return prompt, parts

    def _looks_answered(self) -> bool:
        spelled = {names.canonical(name) for name in self.columns}
        sided = any(_side_of(name) for name in spelled)
        answers = bool(spelled & set(_ANSWERS)) or bool({"completion", "chosen"} & set(self.names))
        return answers or sided or "chosen" in spelled

    def _answer(self, pair: tuple[str, str] | None) -> None:
        is_conversation = any(map(self._has, _CONVERSATIONS))
        is_asked = is_conversation or self._has("prompt") or bool(self.settings.prompt_parts)
        if pair or not is_asked or self._has("completion") or self._has("chosen"):
            return
        spelled = {names.canonical(name): name for name in self.free}
        found = [spelled[name] for name in _ANSWERS if name in spelled]
        if len(found) == 1:
            self._take("completion", found[0], "by its name")
        elif len(found) > 1 and not is_conversation:
            self.problems.append(f"{' and '.join(found)} may each be the answer; columns: {{completion: {found[0]}}}")

    def _has_answers(self, prompt: str | None) -> bool:
        column = self.columns.get(prompt or "")
        answer = self.columns.get(self.names.get("completion", "completion"))
        if answer is not None and answer.ids < 0.9 * answer.rows:
            return True
        return column is None or column.ids < 0.9 * column.rows or column.rows == 0

    # ---- votes ----

    def _counts(self) -> tuple[str, str] | None:
        if ("up" in self.names) != ("down" in self.names):
            self.problems.append("columns names one of up and down; name both")
        if "up" in self.names and "down" in self.names:
            return self.names["up"], self.names["down"]
        up = names.first_of(self.columns, names.UPS)
        down = names.first_of(self.columns, names.DOWNS)
        if up is None or down is None or self.settings.is_left_out(up) or self.settings.is_left_out(down):
            return None
        if self.names.get("label") in (up, down):
            self.problems.append(
                f"{up} and {down} are the votes for and against, and label reads one of them; "
                f"columns: {{up: {up}, down: {down}}} in its place"
            )
            return None
        if self._has("label"):
            return None
        self.read |= {up, down}
        self.said.append(f"{up} and {down} are read as the votes for and against; columns: {{up: {up}, down: {down}}}")
        return up, down

    def _label(self, *, is_pair: bool) -> None:
        votes = [name for name in self.columns if self._is_vote(name) and not self.settings.is_left_out(name)]
        others = [name for name in votes if name not in self.read and name != "label"]
        if self._has("label") or is_pair:
            self._check_negative()
            self._other_votes(others, is_pair=is_pair)
            return
        if self.settings.is_left_out("label") or not others:
            self._other_votes(others, is_pair=False)
            if not self.settings.is_left_out("label"):
                self._check_choices()
            return
        if len(others) > 1:
            listed = "; ".join(f"{name} holds {self.columns[name].shown()}" for name in others)
            none = ", ".join(f"{name}: none" for name in others[1:])
            self.problems.append(f"{listed}: which is the vote? columns: {{label: {others[0]}, {none}}}")
            return
        (name,) = others
        self._one_vote(name)

    def _is_vote(self, name: str) -> bool:
        column = self.columns[name]
        if names.is_vote(name):
            return True
        is_word = column.words == column.rows > 0
        # True and false of an unknown column may well be thumbs.
        is_truth = column.truths == column.rows and len(column.values) > 1
        return (is_word or is_truth) and not names.is_metadata(name)

    def _one_vote(self, name: str) -> None:
        column = self.columns[name]
        values = {value.casefold() for value in column.values}
        # Of a button that only says one thing, false isn't the opposite; of one for "bad", true is no thumbs up.
        is_one_sided = names.canonical(name) in names.UPS and not values <= {"up", "down", "true", "1"}
        is_one_sided |= names.is_negative(name) and column.words < column.rows
        if column.lists and column.lists + column.clear == column.rows:
            self._take("label", name, f"its cells hold several votes: {column.shown()}")
            return
        if column.rows in (column.clear, column.words) and not is_one_sided:
            self._take("label", name, f"its values are votes: {column.shown()}")
            return
        what = "is named like a vote" if names.is_vote(name) else "may be a vote by its values"
        settings = f"columns: {{label: {name}}} reads it as the vote, {{{name}: none}} leaves it out"
        if {value.casefold() for value in column.values} <= {"true", "false"}:
            settings += "; label_words: {'true': undesired, 'false': none} says so of a button for what is bad"
        elif self.settings.spelling.threshold is not None:
            settings += "; label_words says what words mean"
        elif any(_as_number(value) is not None for value in column.values):
            settings += "; label_threshold says from which rating on an answer is desired"
        else:
            settings += "; label_words says what its words mean"
        self.problems.append(f"{name} {what} and holds {column.shown()}; {settings}")

    def _check_choices(self) -> None:
        """Where no column is the vote, answers are learned as they are: so nothing may look like a choice of few."""
        if self.problems or not (self._looks_answered() or any(map(self._has, _CONVERSATIONS))):
            return
        for name in self.free:
            column = self.columns[name]
            is_about = name in self.read or name in COLUMNS or names.is_metadata(name)
            is_about |= names.canonical(name) in names.TOPICS
            if is_about or not column.is_choice(self.num_rows):
                continue
            self.problems.append(
                f"{name} may be a vote by its few values, {column.shown()}, and answers without votes are learned as "
                f"demonstrations; columns: {{label: {name}}} reads it as the vote, {{{name}: none}} leaves it out"
            )

    def _check_negative(self) -> None:
        """A column for what is bad, mapped to label, would turn every vote round."""
        name = self.names.get("label", "label")
        column = self.columns.get(name)
        if column and names.is_negative(name) and column.words < column.rows and not self.settings.spelling.words:
            self.problems.append(
                f"{name} is named for what is bad and holds {column.shown()}; label_words: {{'true': undesired, '1': "
                "undesired, 'false': none, '0': none} says what its values mean"
            )

    def _check_scores(self) -> None:
        for (better, worse), count in self.against.items():
            if not (self.settings.is_left_out(better) or self.settings.is_left_out(worse)):
                self.problems.append(
                    f"in {count:,} pairs {worse} is larger than {better}; columns: {{chosen: rejected, rejected: "
                    f"chosen}} if the pairs stand the other way round, {{{better}: none}} if these scores don't decide"
                )

    def _other_votes(self, others: Sequence[str], *, is_pair: bool) -> None:
        for name in others:
            if self.disagree.get(name):
                self.problems.append(
                    f"{name} says the opposite of label in {self.disagree[name]:,} rows; columns: {{label: {name}}} "
                    f"reads it, {{{name}: none}} leaves it out"
                )
            elif not is_pair or not self.columns[name].objects:
                self.said.append(f"nothing reads {name}, which holds {self.columns[name].shown()}")

    # ---- what nothing reads ----

    def _unread_parts(self, prompt: str | None) -> None:
        read = self.read | set(self.names.values()) | {prompt or "prompt"}
        for name in self.free:
            if name in read:
                continue
            is_part = names.canonical(name) in names.QUESTION_PARTS and name not in ("system", "history")
            if is_part and self.columns[name].ids != self.columns[name].rows:
                what = f"is named like a part of the question and holds {self.columns[name].shown():.80}"
            elif name in self.differing and self._is_text(name):
                what = f"differs between rows of one prompt and holds {self.columns[name].shown():.80}"
            else:
                continue
            self.problems.append(
                f"{name} {what}; prompt_parts: [{name}, {prompt or 'prompt'}] puts it before the question, "
                f"columns: {{{name}: none}} leaves it out"
            )

    def _is_text(self, name: str) -> bool:
        return not all(_NO_TEXT.fullmatch(value) for value in self.columns[name].values)


def two_answers(row: Iterable[str]) -> tuple[str, str] | None:
    """The names of two answers that differ in their side, such as `answer_1` and `answer_2`; None without such."""
    spelled = {names.canonical(name): name for name in row}
    for name, first in spelled.items():
        side = _side_of(name)
        if side is not None and side[1] in _FIRST:
            second = spelled.get(f"{name[: len(name) - len(side[1])]}{_FIRST[side[1]]}")
            if second is not None:
                return first, second
    return None


def _as_score(value: Any) -> float | None:
    value = plain_scalar(value)
    return None if is_missing(value) or isinstance(value, bool) else _as_number(str(value))


def _as_number(word: str) -> float | None:
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


def place_of(row: Mapping[str, Any], shape: Shape) -> Place:
    """Which of the two answers of a row is better.

    Raises:
        RejectedRowError: the row doesn't say.
    """
    if shape.one_hot:
        pressed = [place for name, place in shape.one_hot.items() if _read(row.get(name), VoteWords())]
        if len(pressed) == 1:
            return pressed[0]
        reason = "unknown_label" if pressed else "no_label"
        raise RejectedRowError(reason, f"expected one of {', '.join(shape.one_hot)} to be true, found {len(pressed)}")
    value = unwrapped(value_at(row, shape.winner or ""))
    if is_no_vote(value) and str(value) not in shape.places:
        raise RejectedRowError("no_label", f"expected {shape.winner} to say which answer is better, found nothing")
    word = str(value)
    if word in shape.places:
        return shape.places[word]
    if shape.models:
        first, second = (str(row.get(name)) for name in shape.models)
        if word in (first, second) and first != second:
            return "first" if word == first else "second"
    raise RejectedRowError(
        "unknown_label", f"expected {shape.winner} to say which answer is better, found {word!r:.80}"
    )


Reader = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def cells_of(row: Mapping[str, Any], shape: Shape, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cells of a row by our names, and its other columns.

    Raises:
        RejectedRowError: two answers of which the row doesn't say which is better, or the same.
    """
    taken = {path: name for name, path in shape.names.items()}
    left = {name for name in settings.columns if settings.is_left_out(name)}
    cells: dict[str, Any] = {}
    source: dict[str, Any] = {}
    for name, value in row.items():
        ours = taken.get(name, name if name in COLUMNS and name not in shape.names and name not in left else None)
        if ours is None or (ours not in COLUMNS):
            source[name] = as_json_value(value)
        elif ours == "label":
            cells[ours] = None if is_missing(plain_scalar(value)) else value
        elif not is_missing(plain_scalar(value)) or isinstance(value, str):
            cells[ours] = value
    for ours, path in shape.names.items():
        if path not in row and ours in COLUMNS and has(row, path):
            cells[ours] = value_at(row, path)
    _join_prompt(row, shape, cells, source)
    _ask_in_turns(cells)
    _add_turns(row, cells, source, left)
    if shape.pair is not None and any(has(row, name) for name in shape.pair):
        _choose(row, shape, cells, source)
    return cells, source


def _ask_in_turns(cells: dict[str, Any]) -> None:
    """Take a conversation that ends with a question as the prompt of an answer that stands beside it."""
    name = next((name for name in _CONVERSATIONS if name in cells), None)
    if name is None or "prompt" in cells or "completion" not in cells:
        return
    held = parsed(cells[name])
    if is_conversation(held) and not is_answered(held):
        cells["prompt"] = cells.pop(name)


def _join_prompt(row: Mapping[str, Any], shape: Shape, cells: dict[str, Any], source: dict[str, Any]) -> None:
    if not shape.parts:
        return
    texts = [value_at(row, part) for part in shape.parts]
    for part in shape.parts:
        source.pop(part, None)
    cells["prompt"] = joined_parts(texts)


def joined_parts(texts: Iterable[Any]) -> str:
    """What makes up a prompt together, with an empty line between."""
    present = [text if isinstance(text, str) else canonical_json(as_json_value(text)) for text in texts if text]
    return "\n\n".join(text for text in present if text.strip())


def _add_turns(row: Mapping[str, Any], cells: dict[str, Any], source: dict[str, Any], left: set[str]) -> None:
    """Put a system prompt and the turns before a plain question where they belong."""
    prompt = cells.get("prompt")
    history = parsed(row.get("history")) if "history" not in left else None
    system = cells.get("system")
    if prompt is None or not (history or (isinstance(system, str) and system.strip())):
        return
    turns = parsed(prompt)
    turns = list(turns) if is_conversation(turns) else [{"role": "user", "content": prompt}]
    if history:
        source.pop("history", None)
        turns = [*_turns_of(history), *turns]
    if isinstance(system, str) and system.strip():
        cells.pop("system")
        if turns[0].get("role") != "system":
            turns = [{"role": "system", "content": system}, *turns]
    cells["prompt"] = turns


def _turns_of(history: Any) -> list[dict[str, Any]]:
    if is_conversation(history):
        return list(history)
    turns: list[dict[str, Any]] = []
    if isinstance(history, list):
        for item in history:
            said = list(item.values()) if isinstance(item, Mapping) else item
            if not isinstance(said, list | tuple) or len(said) != 2 or not all(isinstance(text, str) for text in said):
                break
            turns += [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
        else:
            return turns
    raise RejectedRowError(
        "bad_messages", f"expected history as turns or as pairs of question and answer, found {history!r:.80}"
    )


def _up_to_turn(answer: Any, turn: Any) -> Any:
    """A whole conversation up to the n-th answer in it, where the row says which one was judged."""
    held = parsed(answer)
    if not is_conversation(held) or isinstance(turn, bool) or not isinstance(turn, int):
        return answer
    places = [place for place in range(len(held)) if is_answered(held[: place + 1])]
    return held[: places[turn - 1] + 1] if 1 <= turn <= len(places) else answer


def _choose(row: Mapping[str, Any], shape: Shape, cells: dict[str, Any], source: dict[str, Any]) -> None:
    place = place_of(row, shape)
    first, second = shape.pair or ("", "")
    for name in (first, second, shape.winner or "", *shape.one_hot):
        source.pop(name, None)
    cells.pop("label", None)
    if place == "tie":
        raise RejectedRowError("tie", "neither of the two answers is better")
    turn = value_at(row, shape.turn) if shape.turn else None
    answers = tuple(_up_to_turn(value_at(row, name), turn) for name in (first, second))
    cells["chosen"], cells["rejected"] = answers if place == "first" else answers[::-1]
