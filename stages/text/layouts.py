"""Layouts of logged feedback: whatever columns a log has, each row comes out as prompt, completions and label.

A layout is read off the columns of each row, so that one log may mix them:

- pairs: `chosen` and `rejected`, with `prompt`, or after the prompt that both begin with;
- unpaired: `prompt`, `completion` and `label`;
- demonstrations: `prompt` and `completion`, and no column `label`;
- prompts: `prompt` alone;
- `messages` or, in the style of ShareGPT, `conversations`, in place of prompt and completion: the turns of the
  assistant at the end are the completion.
"""

import ast
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from stages.contracts.rows import canonical_json, content_id
from stages.text.reasons import RejectedRowError
from stages.text.votes import VoteWords, is_missing, parse_vote, plain_scalar

Layout = Literal["unpaired", "pairs", "demonstrations", "prompts"]
Column = Literal[
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "label",
    "weight",
    "tools",
    "system",
    "finish_reason",
    "chosen_finish_reason",
    "rejected_finish_reason",
]
EventColumn = Literal["rater", "time", "conversation", "turn", "up", "down", "winner", "history", "correction"]
"""Columns that say who voted when and on what, how many did, and which of two answers is better."""
Messages = list[dict[str, Any]]
Text = str | Messages
"""Plain text, or a conversation as a list of messages with `role` and `content`."""

COLUMNS: tuple[Column, ...] = get_args(Column)
EVENT_COLUMNS: tuple[EventColumn, ...] = get_args(EventColumn)
MAX_MESSAGES = 1000
CUT_OFF = frozenset({"length", "max_tokens", "max_length", "max_output_tokens", "truncated", "incomplete"})
"""Finish reasons, as inference servers report them, of an answer that stopped before its end."""

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_CONVERSATIONS: tuple[Column, ...] = ("messages", "conversations")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "ai": "assistant",
    "agent": "assistant",
    "prompter": "user",
    "customer": "user",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}


class Feedback(NamedTuple):
    """One row of a log in canonical form."""

    layout: Layout
    prompt: Text
    completions: tuple[Text, ...]
    """None, one, or chosen and rejected."""
    label: bool | None
    """Whether the one completion is desired; None outside the layout `unpaired`."""
    are_complete: tuple[bool, ...]
    """Of each completion, whether generation ended by itself."""
    weight: float
    tools: list[Any] | None
    source: dict[str, Any]
    """Columns that have no meaning here."""

    def prompt_id(self) -> str:
        """Hash of the prompt as given, with the tools offered in it."""
        return content_id(self.prompt, *([self.tools] if self.tools else []))

    def row_id(self, completion: Text | None) -> str:
        """Hash of the prompt and one completion of it as given; None stands for no completion."""
        return content_id(self.prompt, completion, *([self.tools] if self.tools else []))

    def pair_id(self) -> str | None:
        """Hash of prompt, chosen and rejected as given; None outside pairs."""
        if self.layout != "pairs":
            return None
        return content_id(self.prompt, *self.completions, *([self.tools] if self.tools else []))


def read_feedback(
    row: Mapping[str, Any],
    *,
    columns: Mapping[Column, str] | None = None,
    layout: Layout | None = None,
    label_threshold: float | None = None,
    ignored_labels: Sequence[float | str] = (),
    spelling: VoteWords | None = None,
) -> Feedback:
    """Canonical form of one logged row.

    Args:
        row: the row as it stood in the log.
        columns: by our name of a column, the log's name for it, where they differ.
        layout: what the row must be; None reads it off its columns.
        label_threshold: smallest rating that is desired; None where the log has no ratings.
        ignored_labels: votes that say neither desired nor undesired.
        spelling: all that params say about votes, in place of the two before.

    Raises:
        RejectedRowError: the row can't be used; the reason says why.
    """
    cells, source = named_cells(row, columns or {})
    feedback, vote = read_cells(cells, source, layout=layout, columns=columns)
    if feedback.layout != "unpaired":
        return feedback
    spelling = spelling or VoteWords(label_threshold, None, ignored_labels)
    return feedback._replace(label=parse_vote(vote, spelling=spelling))


def read_cells(
    cells: dict[Column, Any],
    source: dict[str, Any],
    *,
    layout: Layout | None = None,
    columns: Mapping[Column, str] | None = None,
) -> tuple[Feedback, Any]:
    """Canonical form of one row whose cells have our names, and its vote, which isn't read yet.

    Args:
        cells: by our names; what is used is taken out.
        source: columns without a meaning here.
        layout: what the row must be; None reads it off its columns.
        columns: by our name of a column, what to call it where nothing reads it.

    Raises:
        RejectedRowError: the row can't be used; the reason says why.
    """
    row = {(columns or {}).get(name, name): value for name, value in cells.items()} | source
    _join_turns(cells)
    found = layout or _layout_of(cells, row)
    tools = _tools(cells.pop("tools", None))
    weight = _weight(cells.pop("weight", None))
    prompt, completions = _PARTS[found](cells)
    _check_parts(prompt, completions)
    vote = cells.pop("label", None) if found == "unpaired" else None
    names: tuple[Column, ...] = ("finish_reason",)
    if found == "pairs":
        names = ("chosen_finish_reason", "rejected_finish_reason")
    are_complete = tuple(
        _is_complete(cells.pop(name, None)) and _is_complete(_end_of(completion))
        for name, completion in zip(names, completions, strict=False)
    )
    # What the layout had no use for (a system prompt beside plain text, a score beside a pair) is kept like the rest.
    unused = {(columns or {}).get(name, name): as_json_value(value) for name, value in cells.items()}
    return Feedback(found, prompt, completions, None, are_complete, weight, tools, {**source, **unused}), vote


def _join_turns(cells: dict[Column, Any]) -> None:
    """Take lists of what was asked and answered, turn by turn, for the conversations that they are."""
    answers: list[Column] = [name for name in ("completion", "chosen", "rejected") if name in cells]
    asked = parse_conversation(cells.get("prompt"))
    held = {name: parse_conversation(cells[name]) for name in answers}
    if not answers or not all(_is_list_of_texts(value) for value in (asked, *held.values())):
        return
    for name, said in held.items():
        if len(said) != len(asked) or None in (*said, *asked):
            raise RejectedRowError("bad_messages", f"expected an answer in {name} to each turn of prompt")
        turns = [
            {"role": role, "content": text}
            for pair in zip(asked, said, strict=True)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        if "completion" in held:
            cells["prompt"], cells["completion"] = turns[:-1], turns[-1:]
        else:
            cells[name] = turns
    if "completion" not in held:
        cells.pop("prompt")


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(text is None or isinstance(text, str) for text in value)


def as_json_value(value: Any) -> Any:
    """`value` with only what JSON can hold: dates and the like as text, NaN as null, scalars of numpy as Python's."""
    value = plain_scalar(value)
    if type(value) is str or value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_value(item) for item in value]
    if hasattr(value, "tolist"):
        return as_json_value(value.tolist())
    return value.hex() if isinstance(value, bytes) else str(value)


def without_nulls(value: Any) -> Any:
    """`value` without those keys of objects in it that are null, as tables give every object the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def named_cells(row: Mapping[str, Any], columns: Mapping[Column, str]) -> tuple[dict[Column, Any], dict[str, Any]]:
    """Cells by our names, empty ones left out, and the other columns; an empty label is kept as None."""
    names: dict[str, Column] = {name: name for name in COLUMNS if name not in columns}
    names.update({logged: name for name, logged in columns.items()})
    cells: dict[Column, Any] = {}
    source = {}
    for key, value in row.items():
        name = names.get(key)
        if name is None:
            source[key] = as_json_value(value)
        elif name == "label":
            cells[name] = None if is_missing(plain_scalar(value)) else value
        # Tables have every column in every row, so an empty cell is as good as none. Text that is there and empty
        # is another matter: it is an empty completion.
        elif not is_missing(plain_scalar(value)) or isinstance(value, str):
            cells[name] = value
    return cells, source


def _layout_of(cells: Mapping[Column, Any], row: Mapping[str, Any]) -> Layout:
    if "chosen" in cells and "rejected" in cells:
        return "pairs"
    if "chosen" in cells or "rejected" in cells:
        raise RejectedRowError("half_pair", "expected both chosen and rejected, found one of them")
    has_completion = "completion" in cells
    if conversation := _conversation_column(cells):
        turns = parse_conversation(cells[conversation])
        has_completion = isinstance(turns, list) and bool(turns) and _is_assistant(turns[-1])
    elif "prompt" not in cells:
        raise RejectedRowError(
            "unknown_layout",
            "expected prompt and completion, chosen and rejected, messages or conversations, found columns "
            f"{', '.join(map(str, row)) or 'none'}; name them under ingestion.columns",
        )
    if "label" in cells and (has_completion or cells["label"] is not None):
        return "unpaired"
    return "demonstrations" if has_completion else "prompts"


def _conversation_column(cells: Mapping[Column, Any]) -> Column | None:
    """The column that holds prompt and completion together; columns of their own come first."""
    if "prompt" in cells and "completion" in cells:
        return None
    return next((name for name in _CONVERSATIONS if name in cells), None)


def _single(cells: dict[Column, Any]) -> tuple[Text, tuple[Text, ...]]:
    if name := _conversation_column(cells):
        return _split_at_answer(_take_conversation(cells, name))
    if "prompt" not in cells:
        raise RejectedRowError("empty_prompt", "expected a prompt, found none; name its column under ingestion.columns")
    prompt = _text(cells.pop("prompt"), "prompt")
    if "completion" not in cells:
        return prompt, ()
    return _alike(prompt, _text(cells.pop("completion"), "completion"))


def _with_completion(cells: dict[Column, Any]) -> tuple[Text, tuple[Text, ...]]:
    prompt, completions = _single(cells)
    if not completions:
        raise RejectedRowError("empty_completion", "expected a completion, found none")
    return prompt, completions


def _prompt_alone(cells: dict[Column, Any]) -> tuple[Text, tuple[Text, ...]]:
    return _single(cells)[0], ()


def _pair(cells: dict[Column, Any]) -> tuple[Text, tuple[Text, ...]]:
    missing = [name for name in ("chosen", "rejected") if name not in cells]
    if missing:
        raise RejectedRowError("half_pair", f"expected both chosen and rejected, found no {' and no '.join(missing)}")
    chosen, rejected = _text(cells.pop("chosen"), "chosen"), _text(cells.pop("rejected"), "rejected")
    if chosen == rejected:
        raise RejectedRowError("identical_pair", "chosen and rejected are the same")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RejectedRowError("bad_messages", "one of chosen and rejected is plain text and the other a conversation")
    prompt = _prompt_of_pair(cells)
    if prompt is None or _repeats_prompt(prompt, chosen, rejected):
        prompt, chosen, rejected = extract_prompt(chosen, rejected)
    first, (chosen,) = _alike(prompt, chosen)
    _, (rejected,) = _alike(prompt, rejected)
    return first, (chosen, rejected)


def extract_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The prompt that two texts or two conversations begin with, and what is left of them.

    Text is compared by character; a space before the difference goes to the completions. Where one text begins with
    the whole other one, both keep the last character that they share, so that neither is empty.

    Returns:
        Prompt, chosen and rejected.
    """
    shorter = min(len(chosen), len(rejected))
    length = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if isinstance(chosen, str) and length > 0 and (length == shorter or chosen[length - 1] == " "):
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _repeats_prompt(prompt: Text, chosen: Text, rejected: Text) -> bool:
    """Whether the completions are whole conversations that hold the plain prompt as their first turns."""
    if not isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return False
    return not (_is_assistant(chosen[0]) or _is_assistant(rejected[0]))


def _alike(prompt: Text, completion: Text) -> tuple[Text, tuple[Text]]:
    """Prompt and completion both plain or both conversations; plain text beside messages becomes one message."""
    if isinstance(prompt, str) and not isinstance(completion, str):
        return [{"role": "user", "content": prompt}], (completion,)
    if isinstance(completion, str) and not isinstance(prompt, str):
        return prompt, ([{"role": "assistant", "content": completion}],)
    return prompt, (completion,)


def _prompt_of_pair(cells: dict[Column, Any]) -> Text | None:
    if "prompt" in cells:
        return _text(cells.pop("prompt"), "prompt")
    name = next((name for name in _CONVERSATIONS if name in cells), None)
    if name is None:
        return None
    held = parse_conversation(cells[name])
    # Some sets keep the whole chosen conversation beside the pair; it is no prompt.
    if isinstance(held, list | tuple) and held and _is_assistant(held[-1]):
        return None
    return _take_conversation(cells, name)


def _take_conversation(cells: dict[Column, Any], name: Column) -> Messages:
    messages = _messages(parse_conversation(cells.pop(name)), name)
    if messages[0]["role"] != "system" and isinstance(cells.get("system"), str):
        system = cells.pop("system")
        return [{"role": "system", "content": system}, *messages] if system else messages
    return messages


def _split_at_answer(messages: Messages) -> tuple[Text, tuple[Text, ...]]:
    length = len(messages)
    while length and _is_assistant(messages[length - 1]):
        length -= 1
    return messages[:length], ((messages[length:],) if length < len(messages) else ())


def _text(value: Any, name: str) -> Text:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        held = parse_conversation(value)
        return _messages(held, name) if is_conversation(held) else value
    if isinstance(value, list | tuple | Mapping):
        return _messages([value] if isinstance(value, Mapping) else value, name)
    raise RejectedRowError(
        "not_text", f"expected {name} as text or messages, found {type(value).__name__} {value!r:.40}"
    )


def parse_conversation(value: Any) -> Any:
    """A conversation that a CSV file or a text column holds as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return _python_literal(value)
    return value


def _python_literal(value: str) -> Any:
    """A list of objects as Python writes it, which pandas puts into CSV files; other text as it is."""
    if not re.match(r"\s*\[?\s*\{\s*'", value):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns: each with a speaker, under `role` or `from`, and what they said."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role", turn.get("from")), str)
        and not {"content", "value", "tool_calls"}.isdisjoint(turn)
        for turn in value
    )


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list | tuple) or not value:
        raise RejectedRowError("bad_messages", f"expected {name} as a list of messages, found {value!r:.80}")
    if len(value) > MAX_MESSAGES:
        raise RejectedRowError("too_many_messages", f"expected up to {MAX_MESSAGES:,} messages, found {len(value):,}")
    return [_message(message, name) for message in value]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RejectedRowError("bad_messages", f"expected each message of {name} as an object, found {message!r:.80}")
    # Tables give every message every key, so a null is as good as none.
    kept = {str(key): as_json_value(item) for key, item in message.items() if item is not None}
    if "role" not in kept and "from" in kept:
        role = _SHAREGPT_ROLES.get(str(kept.pop("from")).strip().casefold())
        if role is None:
            raise RejectedRowError("bad_messages", f"expected a known speaker, found {message['from']!r:.40}")
        kept = {"role": role, "content": kept.pop("value", None), **kept}
    if not isinstance(kept.get("role"), str):
        raise RejectedRowError("bad_messages", f"expected each message of {name} with a role, found {message!r:.80}")
    # A role that templates don't know would be left out of the text by some of them.
    kept["role"] = _SHAREGPT_ROLES.get(kept["role"].strip().casefold(), kept["role"])
    kept["content"] = _content(kept.get("content"), has_calls=bool(kept.get("tool_calls")))
    if "weight" in kept:
        kept["weight"] = _turn_weight(kept["weight"])
    return kept


def is_answered(turns: Sequence[Any]) -> bool:
    """Whether a conversation ends with a turn of the assistant."""
    return bool(turns) and _is_assistant(turns[-1])


def _content(content: Any, *, has_calls: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and has_calls:
        return ""
    if not isinstance(content, list):
        raise RejectedRowError("bad_messages", f"expected content as text, found {content!r:.80}")
    parts = [
        _text_of_part(part) if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS else part
        for part in content
    ]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise RejectedRowError("unsupported_content", "expected text, found content of another kind, such as an image")
    return "".join(texts)


def _text_of_part(part: Mapping[str, Any]) -> Any:
    text = part.get("text", part.get("value"))
    return text.get("value") if isinstance(text, Mapping) else text


def _is_assistant(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    speaker = message["role"] if "role" in message else message.get("from")
    return _SHAREGPT_ROLES.get(str(speaker).strip().casefold()) == "assistant"


def _check_parts(prompt: Text, completions: tuple[Text, ...]) -> None:
    if _is_empty(prompt):
        raise RejectedRowError("empty_prompt", "expected a prompt, found none or only white space")
    for completion in completions:
        if _is_empty(completion):
            raise RejectedRowError("empty_completion", "expected a completion, found none or only white space")
        if not isinstance(completion, str) and not _is_assistant(completion[0]):
            role = completion[0]["role"]
            raise RejectedRowError(
                "completion_not_assistant", f"expected an answer of the assistant, found one of {role:.40}"
            )


def _is_empty(text: Text) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return not any(message["content"].strip() or message.get("tool_calls") for message in text)


def _tools(value: Any) -> list[Any] | None:
    tools = parse_conversation(value)
    if tools is None or tools in ("", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RejectedRowError("bad_tools", f"expected tools as a list of JSON schemas, found {tools!r:.80}")
    return [as_json_value(tool) for tool in tools]


def _weight(value: Any) -> float:
    value = plain_scalar(value)
    if is_missing(value):
        return 1.0
    try:
        # The artifact holds float32, in which a very small weight would be 0 and a very large one infinite.
        weight: float = struct.unpack("f", struct.pack("f", float(value)))[0]
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if isinstance(value, bool) or not math.isfinite(weight) or weight <= 0:
        raise RejectedRowError("bad_weight", f"expected weight as a positive finite number, found {value!r:.40}")
    return weight


def _turn_weight(value: Any) -> float:
    """Weight of one message; 0 says that it isn't learned."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RejectedRowError(
            "bad_weight", f"expected the weight of a message as a finite number from 0, found {value!r:.40}"
        )
    return float(value)


def from_first_answer(feedback: Feedback) -> Feedback:
    """A demonstrated conversation with all of its answers in the completion; other feedback as it is.

    The vote on an answer says nothing of those before it, so that only demonstrations are taken so.
    """
    if feedback.layout != "demonstrations" or isinstance(feedback.prompt, str) or _is_assistant(feedback.prompt[-1]):
        return feedback
    roles = [message["role"] for message in feedback.prompt]
    asked = roles.index("user") if "user" in roles else len(roles)
    if "assistant" not in roles[asked:]:
        return feedback
    return _split_again(feedback, roles.index("assistant", asked))


def of_last_answer(feedback: Feedback) -> Feedback:
    """A conversation with the last answer alone in the completion, and what was said before in the prompt.

    Pairs stay as they are, for their two completions answer one prompt.
    """
    if feedback.layout == "pairs" or isinstance(feedback.prompt, str) or not feedback.completions:
        return feedback
    turns = [*feedback.prompt, *feedback.completions[0]]
    is_alone = not _is_assistant(turns[-2])
    return _split_again(feedback, len(turns) - 1) if is_alone else feedback


def each_answer(feedback: Feedback) -> list[Feedback]:
    """A demonstrated conversation as one demonstration for each of its answers that weighs something."""
    whole = from_first_answer(feedback)
    if whole.layout != "demonstrations" or isinstance(whole.prompt, str):
        return [feedback]
    turns = [*whole.prompt, *whole.completions[0]]
    found: list[Feedback] = []
    for place in range(len(whole.prompt), len(turns)):
        if not _is_assistant(turns[place]) or (_is_assistant(turns[place - 1]) and place > len(whole.prompt)):
            continue
        # Turns of the assistant in a row are one answer.
        end = next((at for at in range(place, len(turns)) if not _is_assistant(turns[at])), len(turns))
        are_complete = whole.are_complete if end == len(turns) else (True,)
        one = whole._replace(prompt=turns[:place], completions=(turns[place:end],), are_complete=are_complete)
        weighs = any(message.get("weight", 1) for message in turns[place:end])
        # Of a conversation of which nothing is learned the last answer stays, to be rejected with that reason.
        found += [one] if weighs or (end == len(turns) and not found) else []
    return found


def _split_again(feedback: Feedback, length: int) -> Feedback:
    turns = [*feedback.prompt, *feedback.completions[0]]
    return feedback._replace(prompt=turns[:length], completions=(turns[length:],))


def _end_of(completion: Text) -> Any:
    """Why generation of an answer ended, as its last message says."""
    last = {} if isinstance(completion, str) else completion[-1]
    return last.get("finish_reason", last.get("stop_reason"))


def _is_complete(finish_reason: Any) -> bool:
    return str(finish_reason).strip().casefold() not in CUT_OFF


def messages_json(feedback: Feedback, completion: Text | None) -> str:
    """Prompt, completion and tools as given, as one JSON object."""
    value: dict[str, Any] = {"prompt": feedback.prompt, "completion": completion}
    return canonical_json({**value, "tools": feedback.tools} if feedback.tools else value)


_PARTS = {"unpaired": _with_completion, "pairs": _pair, "demonstrations": _with_completion, "prompts": _prompt_alone}
