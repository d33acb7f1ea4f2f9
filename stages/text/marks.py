"""Finding what was said inside what a chat template made of it.

A template is a program: it may trim a text, drop it, write it twice or move it. So each text of a conversation is
given two characters of its own, from a private area of Unicode, in front and behind, and the conversation is rendered
a second time. Where that is the first rendering but for these characters, they stand where the text stands.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from stages.text.layouts import Messages
from stages.text.reasons import RejectedRowError

_FIRST_MARK = 0xF0000
_MARK = re.compile("[\U000f0000-\U000ffffd]")
_MAX_PIECES = 32_000
# A thought inside an answer: templates may set it apart, so that its tags say where one text ends and another begins.
_TAG = re.compile(r"(</?think(?:ing)?>|</?reasoning>|\[/?THINK\])")
REASONING_FIELD = "reasoning_content"

Kind = Literal["text", "value", "name", "key"]
Place = tuple[int, int]


class Piece(NamedTuple):
    """A text that has to be found."""

    turn: int
    """Which message said it, from 0."""
    text: str
    """Without white space around it."""
    kind: Kind
    """`text` is written as it is, `value` perhaps as JSON writes it; `name` of a tool, perhaps more than once; `key`
    of an argument."""
    is_prompt: bool
    """Whether it is said before the answer."""
    is_thought: bool = False
    """Whether an assistant thought it, in a field of its own or between tags."""


class Marked(NamedTuple):
    """A conversation with marks."""

    messages: Messages
    pieces: list[Piece]
    """In the order of their marks."""


def marked(messages: Messages, *, num_prompt_turns: int, seam: int | None = None) -> Marked:
    """`messages` with marks around each text.

    Args:
        messages: a conversation.
        num_prompt_turns: how many of them come before the answer.
        seam: where in the next one's content the answer begins, if it continues that turn; None: at its start.

    Raises:
        RejectedRowError: a text holds marks already, or there are too many texts.
    """
    if _MARK.search(json.dumps(messages, ensure_ascii=False)):
        raise RejectedRowError(
            "special_token_in_text", "the text holds characters of a private area of Unicode, U+F0000 to U+FFFFD"
        )
    pen = _Pen([])
    found = [
        pen.message(turn, message, is_prompt=turn < num_prompt_turns, seam=seam if turn == num_prompt_turns else None)
        for turn, message in enumerate(messages)
    ]
    if len(pen.pieces) > _MAX_PIECES:
        raise RejectedRowError("too_many_messages", f"expected up to {_MAX_PIECES:,} texts, found {len(pen.pieces):,}")
    return Marked(found, pen.pieces)


class Found(NamedTuple):
    """A piece and where it stands."""

    piece: Piece
    start: int
    end: int


class _Pen(NamedTuple):
    pieces: list[Piece]

    def message(self, turn: int, message: dict[str, Any], *, is_prompt: bool, seam: int | None) -> dict[str, Any]:
        result = dict(message)
        is_assistant = message["role"] == "assistant"
        if isinstance(message.get(REASONING_FIELD), str):
            result[REASONING_FIELD] = self._mark(
                turn, message[REASONING_FIELD], "text", is_prompt=is_prompt, is_thought=True
            )
        content = message.get("content")
        if isinstance(content, str) and not is_assistant:
            kind: Kind = "value" if message["role"] in ("tool", "function") else "text"
            result["content"] = self._mark(turn, content, kind, is_prompt=is_prompt)
        elif isinstance(content, str):
            result["content"] = "".join(self._spoken(turn, content, is_prompt=is_prompt, seam=seam))
        if isinstance(calls := message.get("tool_calls"), list):
            result["tool_calls"] = [self._call(turn, call, is_prompt=is_prompt) for call in calls]
        return result

    def _spoken(self, turn: int, content: str, *, is_prompt: bool, seam: int | None) -> Iterator[str]:
        """An answer's parts between tags of thoughts, and on either side of the seam."""
        offset = 0
        parts = _TAG.split(content)
        if not any(part.strip() for part in parts[::2]):
            # Tags with nothing between them are what was said.
            parts = [content]
        for index, part in enumerate(parts):
            is_thought = index + 1 < len(parts) and "/" in parts[index + 1]
            at = 0 if seam is None else min(max(seam - offset, 0), len(part))
            offset += len(part)
            if index % 2:
                yield part
                continue
            yield self._mark(turn, part[:at], "text", is_prompt=True, is_thought=is_thought)
            yield self._mark(turn, part[at:], "text", is_prompt=is_prompt, is_thought=is_thought)

    def _call(self, turn: int, call: Any, *, is_prompt: bool) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RejectedRowError("bad_messages", f"expected a call with the name of a function, found {call!r:.80}")
        result = {**function, "name": self._mark(turn, function["name"], "name", is_prompt=is_prompt)}
        if isinstance(function.get("arguments"), str):
            # Text is JSON already, so that a template has to write it as it is.
            result["arguments"] = self._mark(turn, function["arguments"], "text", is_prompt=is_prompt)
        elif "arguments" in function:
            result["arguments"] = self._value(turn, function["arguments"], is_prompt=is_prompt)
        return {**call, "function": result}

    def _value(self, turn: int, value: Any, *, is_prompt: bool) -> Any:
        if isinstance(value, str):
            return self._mark(turn, value, "value", is_prompt=is_prompt)
        if isinstance(value, list):
            return [self._value(turn, item, is_prompt=is_prompt) for item in value]
        if isinstance(value, dict):
            return {
                self._mark(turn, key, "key", is_prompt=is_prompt): self._value(turn, item, is_prompt=is_prompt)
                for key, item in value.items()
            }
        return value

    def _mark(self, turn: int, text: str, kind: Kind, *, is_prompt: bool, is_thought: bool = False) -> str:
        core = text.strip()
        if not core:
            return text
        begin = chr(_FIRST_MARK + 2 * (len(self.pieces) % _MAX_PIECES))
        end = chr(ord(begin) + 1)
        self.pieces.append(Piece(turn, core, kind, is_prompt, is_thought))
        if kind == "key":
            # Both behind, so that arguments sorted by name stay in that order.
            return f"{text}{begin}{end}"
        start = text.index(core)
        return f"{text[:start]}{begin}{core}{end}{text[start + len(core) :]}"


def find_pieces(text: str, rendered: str, conversation: Marked, *, may_miss: Callable[[Piece], bool]) -> list[Found]:
    """Where each piece of a conversation stands in its rendering, in the order of its marks.

    Args:
        text: what the template made of the conversation.
        rendered: what it made of the conversation with marks.
        conversation: the conversation, and what its marks stand for.
        may_miss: whether a piece may be missing; one that is there is excused from nothing.

    Raises:
        RejectedRowError: a piece is missing, stands there twice, was changed, or stands among the words of another
            message; the detail names the message.
    """
    plain, marks = _unmarked(rendered)
    found = []
    for number, piece in enumerate(conversation.pieces):
        starts, ends = marks.get(2 * number, []), marks.get(2 * number + 1, [])
        if plain != text:
            starts, ends = _literal_marks(piece, text)
        if not starts and may_miss(piece):
            continue
        found.append(Found(piece, *_place(piece, starts, ends, text, conversation.messages)))
    _check_order(found, conversation.messages)
    return found


def _check_order(found: Sequence[Found], messages: Messages) -> None:
    furthest, border, last = 0, 0, -1
    for piece, start, end in sorted(found, key=lambda item: item.piece.turn):
        if piece.turn != last:
            border, last = furthest, piece.turn
        if start < border:
            raise _misplaced(piece, messages, "moves", "before what was said earlier")
        furthest = max(furthest, end)


def _unmarked(rendered: str) -> tuple[str, dict[int, list[int]]]:
    """Text without marks, and where those of each number stood."""
    marks: dict[int, list[int]] = defaultdict(list)
    parts, last, length = [], 0, 0
    for match in _MARK.finditer(rendered):
        parts.append(rendered[last : match.start()])
        length += match.start() - last
        marks[ord(match.group()) - _FIRST_MARK].append(length)
        last = match.end()
    parts.append(rendered[last:])
    return "".join(parts), marks


def _place(piece: Piece, starts: list[int], ends: list[int], plain: str, messages: Messages) -> Place:
    if not starts or not ends:
        raise lost(piece, messages)
    if (len(starts) > 1 or len(ends) > 1) and piece.kind not in ("name", "key"):
        raise _misplaced(piece, messages, "repeats", "")
    start, end = starts[0], ends[0]
    if piece.kind == "key":
        forms = _written_forms(piece)
        start = next((end - len(form) for form in forms if plain[:end].endswith(form)), end)
    written = plain[start:end]
    if written not in _written_forms(piece):
        raise _misplaced(piece, messages, "changes", f"to {written!r:.60}")
    if piece.kind == "key" and plain[start - 1 : start] == plain[end : end + 1] == "'":
        raise _misplaced(piece, messages, "writes", "as Python does, where a tool expects JSON")
    return start, end


def _written_forms(piece: Piece) -> tuple[str, ...]:
    if piece.kind in ("value", "key"):
        return (piece.text, *(json.dumps(piece.text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)))
    return (piece.text,)


def _literal_marks(piece: Piece, text: str) -> tuple[list[int], list[int]]:
    """What marks would say of a rendering that depends on the texts themselves, and so changes with them."""
    starts = [match.start() for match in re.finditer(re.escape(piece.text), text)]
    ends = [start + len(piece.text) for start in starts]
    return (ends if piece.kind == "key" else starts), ends


def said_by(piece: Piece, messages: Messages) -> str:
    """Which message said a piece, for a reader."""
    return f"message {piece.turn + 1} ({messages[piece.turn]['role']:.20})"


def lost(piece: Piece, messages: Messages) -> RejectedRowError:
    """That a template leaves a piece out, and what to do about it."""
    role = messages[piece.turn]["role"]
    remedies = {
        "system": "set normalization.fold_system: true, which says it in the user's first turn",
        "developer": "set normalization.fold_system: true, which says it in the user's first turn",
        "tool": "take a base model whose template knows tools",
        "assistant": "give the answer as the template reads it (thinking as reasoning_content, calls as tool_calls)",
    }
    advice = remedies.get(role, "name a role that the template knows (system, user, assistant, tool)")
    if piece.is_thought and any(message["role"] == "user" for message in messages[piece.turn + 1 :]):
        # Templates of thinking models forget what was thought before the user's last turn.
        advice = (
            "set normalization.earlier_thoughts: as_served, as servers leave it out too"
            if piece.is_prompt
            else "log each answer as a row of its own, the thoughts before it left out by "
            "normalization.earlier_thoughts: as_served"
        )
    return RejectedRowError(
        "text_not_rendered",
        f"{said_by(piece, messages)}: the chat template leaves out {_shown(piece)}; {advice}, or give a "
        "normalization.chat_template or template_arguments that render it",
    )


def _misplaced(piece: Piece, messages: Messages, what: str, more: str) -> RejectedRowError:
    return RejectedRowError(
        "text_misplaced",
        f"{said_by(piece, messages)}: the chat template {what} {_shown(piece)} {more}".rstrip()
        + "; give a normalization.chat_template that writes each text once, as it is, in order",
    )


def _shown(piece: Piece) -> str:
    return f"{piece.text!r:.60}"


def check_numbers(text: str, found: Sequence[Found], messages: Messages) -> None:
    """See that arguments that are no texts stand behind their names.

    Raises:
        RejectedRowError: one doesn't.
    """
    keys: dict[int, list[Found]] = defaultdict(list)
    for item in found:
        if item.piece.kind == "key":
            keys[item.piece.turn].append(item)
    for turn, items in keys.items():
        for (piece, _, end), value in zip(items, _scalars(messages[turn].get("tool_calls")), strict=True):
            behind = text[end : min([item.start for item in found if item.start > end], default=len(text))]
            if value is not _NO_SCALAR and not any(form in behind for form in (json.dumps(value), str(value))):
                raise _misplaced(piece, messages, "leaves out the value of", "")


_NO_SCALAR = object()


def _scalars(value: Any) -> Iterator[Any]:
    """For each key of arguments, in the order of marks, its value if that is a number, a truth value or null."""
    if isinstance(value, dict):
        if isinstance(function := value.get("function"), dict):
            yield from _scalars_of_arguments(function.get("arguments"))
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)


def _scalars_of_arguments(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _scalars_of_arguments(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.strip():
                yield _NO_SCALAR if isinstance(item, str | list | dict) else item
            yield from _scalars_of_arguments(item)
