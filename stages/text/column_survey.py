"""Looks at every row of a log once and notes what its columns hold, which `column_shape` judges."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from stages.contracts.rows import canonical_json
from stages.text import column_names as names
from stages.text.columns import (
    ANSWERS,
    CONVERSATIONS,
    PROMPTS,
    WINNERS,
    Settings,
    as_number,
    has,
    place_of_word,
    side_of,
)
from stages.text.event_store import EventStore
from stages.text.layouts import COLUMNS, as_json_value
from stages.text.layouts import parse_conversation as parsed
from stages.text.reasons import RejectedRowError
from stages.text.votes import (
    DOWN,
    UP,
    VoteWords,
    is_missing,
    parse_vote,
    plain_scalar,
    rating_of,
    unwrapped,
    vote_or_none,
    word_of,
)

_WORDS = (UP | DOWN) - {"yes", "no", "y", "n", "t", "f", "true", "false", "right", "positive", "negative", "neg", "pos"}
_WORDS -= {"ja", "nein", "s\u00ed", "oui", "non", "pass", "fail", "passed", "failed", "relevant", "irrelevant"}
_MAX_VALUES = 60
_MAX_WORD = 24
_MAX_CHOICE = 40
_MAX_CHOICES = 11
"""From 0 to 10 is the longest scale that people are asked to choose from."""
_MAX_SIGNATURES = 2000
_ID = re.compile(r"\d+|[0-9a-f]{8}[0-9a-f-]{8,}", re.IGNORECASE)


@dataclass
class Column:
    """What is known of a column."""

    rows: int = 0
    values: Counter[str] = field(default_factory=Counter)
    has_more: bool = False
    texts: int = 0
    """Rows with text of several words."""
    numbers: int = 0
    """Values that are ratings, however written."""
    objects: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    """Keys of its objects that hold text, and how often."""
    nested: int = 0
    """Objects and lists that hold more than one value."""
    ids: int = 0
    clear: int = 0
    """Votes that can be read without a setting."""
    lists: int = 0
    """Cells that hold several votes."""
    truths: int = 0
    """Values that are true or false."""
    words: int = 0
    """Values that are words for votes, such as "up", whatever the column is called."""
    judges: int = 0
    """Values that speak of a vote, such as "negative_feedback", whatever the column is called."""
    beside_pair: Counter[str] = field(default_factory=Counter)
    """Values in rows that have a chosen and a rejected answer."""

    def add(self, value: Any, spelling: VoteWords | None) -> None:
        """Take in a cell; `spelling` reads it as a vote."""
        value = plain_scalar(value)
        self.rows += 1
        if isinstance(value, Mapping | list | tuple):
            self.objects += 1
            self._add_keys(value)
            if names.votes_in(value) is not None:
                self.lists += 1
                spelling = None
            value = unwrapped(value)
            self.nested += isinstance(value, Mapping | list | tuple)
        text = str(value)
        self.texts += isinstance(value, str) and len(text.split()) > 1
        self.ids += _ID.fullmatch(text) is not None
        if len(self.values) < _MAX_VALUES or text in self.values:
            self.values[text[:80]] += 1
        else:
            self.has_more = True
        self.truths += isinstance(value, bool)
        self.numbers += not isinstance(value, bool) and rating_of(value) is not None
        self.words += len(text) < _MAX_WORD and word_of(value) in _WORDS
        self.judges += isinstance(value, str) and len(text) < _MAX_WORD and names.speaks_of_votes(text)
        if spelling is not None:
            self.clear += _is_clear(value, spelling)

    def _add_keys(self, value: Any) -> None:
        for key, item in value.items() if isinstance(value, Mapping) else ():
            if isinstance(item, str) and (key in self.keys or len(self.keys) < _MAX_VALUES):
                self.keys[str(key)] += 1

    def add_beside_pair(self, value: Any) -> None:
        """Take in a cell of a row that has a chosen and a rejected answer."""
        word = str(unwrapped(value))[:80]
        if not is_missing(plain_scalar(value)) and (word in self.beside_pair or len(self.beside_pair) < _MAX_VALUES):
            self.beside_pair[word] += 1

    def is_choice(self, num_rows: int) -> bool:
        """Whether its values are few short words or numbers, as those of buttons and scales are."""
        if self.nested or self.has_more or len(self.values) > _MAX_CHOICES:
            return False
        # What a button or a step of a scale says may have several words.
        is_short = all(len(value) < _MAX_CHOICE for value in self.values)
        is_repeated = 2 * len(self.values) <= self.rows if len(self.values) > 1 else self.rows < num_rows
        # In a log of three rows a button's two words are more than half of them.
        is_repeated |= 1 < len(self.values) <= 3 and len(self.values) < self.rows
        return is_short and is_repeated

    def shown(self) -> str:
        """Its commonest values and how often they stand there, for messages."""
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
    """Looks at every row of a log and notes what its columns hold.

    Args:
        settings: what params say.
        store: holds what was asked how often and with what beside it.
    """

    def __init__(self, settings: Settings, store: EventStore) -> None:
        self.settings = settings
        self._store = store
        self._beside = store.table("beside", prompt=pa.binary(), name=pa.string(), digest=pa.binary())
        self.columns: dict[str, Column] = {}
        self.found: set[str] = set()
        self._signatures: set[frozenset[str]] = set()
        self.disagree: Counter[str] = Counter()
        self.against: Counter[tuple[str, str]] = Counter()
        self.unlike: Counter[tuple[str, str]] = Counter()
        """Rows in which two columns that may name the better answer differ."""
        self.num_rows = 0
        self.in_messages: Counter[str] = Counter()
        """Keys of messages that are named like votes, in rows of which no format reads them."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row of columns."""
        self.num_rows += 1
        if len(self._signatures) < _MAX_SIGNATURES:
            present = {name for name, value in row.items() if not is_missing(plain_scalar(value))}
            self._signatures.add(frozenset(present))
        named = self.settings.named()
        self.found |= {path for path in named.values() if has(row, path)}
        self.found |= {path for path in self.settings.prompt_parts if has(row, path)}
        for name, value in row.items():
            if not is_missing(plain_scalar(value)) and value not in ([], {}):
                vote = self.settings.spelling if names.is_vote(name) or name in named.values() else None
                self.columns.setdefault(name, Column()).add(value, vote)
        pair = (named.get("chosen", "chosen"), named.get("rejected", "rejected"))
        if not any(is_missing(plain_scalar(row.get(name))) for name in pair):
            for name, value in row.items():
                if name in self.columns and (names.is_vote(name) or names.canonical(name) in WINNERS):
                    self.columns[name].add_beside_pair(value)
                worse = name.replace("chosen", "rejected") if "chosen" in name and names.is_vote(name) else name
                if worse != name and (_as_score(value) or 0.0) < (_as_score(row.get(worse)) or 0.0):
                    self.against[name, worse] += 1
        self._compare_winners(row)
        self._add_nested(row)
        self._look_into_messages(row, named)
        self._compare_prompts(row, named)
        self._compare_votes(row, named)

    def _compare_winners(self, row: Mapping[str, Any]) -> None:
        winners = [name for name, value in row.items() if names.canonical(name) in WINNERS and not _is_empty(value)]
        for first, second in itertools.combinations(winners, 2):
            self.unlike[first, second] += _word(row[first]) != _word(row[second])

    def _look_into_messages(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        for name in {*CONVERSATIONS, named.get("messages", "")}:
            self.in_messages.update(f"{name}.{key}" for key in names.unread_vote_keys(parsed(row.get(name))))

    def _add_nested(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, Mapping) and not names.is_vote(name):
                for inner, item in value.items():
                    if names.is_vote(inner) and not is_missing(plain_scalar(item)):
                        self.columns.setdefault(f"{name}.{inner}", Column()).add(item, self.settings.spelling)

    def _compare_prompts(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        asked = {named.get("prompt", ""), *PROMPTS, *self.settings.prompt_parts, "system", "history", "context"}
        key_of = {name: as_json_value(value) for name, value in row.items() if name in asked}
        for name in (*CONVERSATIONS, named.get("messages", "")):
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
        if spelled in ANSWERS or spelled in names.CORRECTIONS:
            return False
        return not (names.is_vote(name) or names.is_metadata(name) or side_of(spelled))

    def _compare_votes(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        if "label" in named or self.settings.is_left_out("label") or is_missing(plain_scalar(row.get("label"))):
            return
        label = vote_or_none(row["label"], self.settings.spelling)
        for name, value in row.items():
            if name != "label" and names.is_vote(name) and label is not None:
                other = vote_or_none(value, self.settings.spelling)
                self.disagree[name] += other is not None and other != label

    def has_rows_without(self, answers: Iterable[str]) -> bool:
        """Whether some row has none of the columns of answers."""
        return bool(self._signatures) and any(signature.isdisjoint(answers) for signature in self._signatures)

    def differing(self) -> set[str]:
        """Columns with several texts beside one prompt."""
        found = self._store.rows(
            """select name from (select prompt, name from beside group by all having count(distinct digest) > 1)
            group by name"""
        )
        return {name for (name,) in found}


def _is_empty(value: Any) -> bool:
    return is_missing(plain_scalar(value)) or isinstance(value, Mapping | list | tuple)


def _word(value: Any) -> str:
    """What a cell says of two answers, so that two columns compare."""
    word = str(unwrapped(value))
    return place_of_word(word) or word


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _as_score(value: Any) -> float | None:
    value = plain_scalar(value)
    return None if is_missing(value) or isinstance(value, bool) else as_number(str(value))
