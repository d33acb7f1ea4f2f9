"""The shapes in which one conversation can be handed to a chat template.

Templates differ in what they read: the arguments of a call as an object or as JSON text, an answer of calls alone
with empty content or with none, thoughts in a field or between tags, instructions under the role `system` or
`developer`, content as text or as a list of parts. What was said is the same in all of them, so they are tried in
order, the log's own first, until one is rendered whole.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from stages.text.layouts import Messages
from stages.text.marks import REASONING_FIELD

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_KNOWN_ROLES = {"developer": "system", "function": "tool"}
_PARTED = "\n\n"


class Form(NamedTuple):
    """One shape of a conversation; the defaults are the first to be tried."""

    arguments: Literal["object", "text"] = "object"
    """How the arguments of calls are given."""
    no_content: Literal["empty", "null", "absent"] = "empty"
    """What stands for the content of an answer of calls alone."""
    reasoning: Literal["field", "tags"] = "field"
    """Where thoughts stand."""
    roles: Literal["given", "known"] = "given"
    """Whether `developer` is named `system`, and `function` is named `tool`."""
    content: Literal["text", "parts"] = "text"
    """Whether content is text or a list of parts."""

    def said(self) -> list[str]:
        """What a reader of the run should know of it; the other choices only spell the same thing."""
        return ["roles_renamed"] if self.roles == "known" else []


CHANGES = ("system_folded", "turns_joined")
"""What params.yaml may allow where a template takes the turns in no form; unlike a form, it says them otherwise."""


def changed(prompt: Messages, allowed: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Messages]]:
    """A prompt as it is, and with what is allowed of `CHANGES` where that makes a difference, the least first.

    Args:
        prompt: in its first shape.
        allowed: names in `CHANGES`.

    Returns:
        Pairs of what was changed and the prompt.
    """
    yield (), prompt
    for number in range(1, len(allowed) + 1):
        for names in itertools.combinations(allowed, number):
            found = folded(prompt) if "system_folded" in names else prompt
            found = joined(found) if "turns_joined" in names else found
            if found != prompt or "turns_joined" in names:
                yield names, found


def folded(messages: Messages) -> Messages:
    """`messages` with system texts at their start said at the beginning of the user's first turn behind them."""
    system = list(itertools.takewhile(lambda message: message["role"] in ("system", "developer"), messages))
    rest = messages[len(system) :]
    if not system or not rest or rest[0]["role"] != "user":
        return messages
    texts = [message["content"] for message in (*system, rest[0])]
    if not all(isinstance(text, str) for text in texts):
        return messages
    return [{**rest[0], "content": _PARTED.join(texts)}, *rest[1:]]


def joined(messages: Messages) -> Messages:
    """`messages` with each run of turns of the user as one turn."""
    found: Messages = []
    for message in messages:
        texts = [found[-1]["content"] if found else None, message["content"]]
        is_run = bool(found) and found[-1]["role"] == message["role"] == "user"
        if is_run and all(isinstance(text, str) for text in texts):
            found[-1] = {**found[-1], "content": _PARTED.join(texts)}
        else:
            found.append(message)
    return found


def canonical(messages: Messages) -> Messages:
    """The first shape: thoughts in one field, arguments as objects, calls as functions, and no empty list of calls."""
    return [_canonical(message) for message in messages]


def _canonical(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = next((message[name] for name in _REASONING_FIELDS if isinstance(message.get(name), str)), None)
    # What a message weighs is ours to know: no server sends it.
    names = ("tool_calls", "weight", *(_REASONING_FIELDS if thoughts is not None else ()))
    result = {name: value for name, value in message.items() if name not in names}
    if thoughts is not None and thoughts.strip():
        result[REASONING_FIELD] = thoughts
    if calls := message.get("tool_calls"):
        result["tool_calls"] = [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    return result


def _call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if not isinstance(call.get("function"), dict) and "name" in call:
        own = {name: value for name, value in call.items() if name not in ("name", "arguments", "parameters")}
        arguments = call.get("arguments", call.get("parameters"))
        call = {"type": "function", **own, "function": {"name": call["name"], "arguments": arguments}}
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    return {**call, "function": {**function, "arguments": _as_object(function.get("arguments"))}}


def _as_object(arguments: Any) -> Any:
    if arguments is None:
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def forms_of(messages: Messages, template: str) -> Iterator[Form]:
    """The forms that make a difference to these messages under a template, the first one first.

    Args:
        messages: the whole conversation, in its first shape.
        template: Jinja text.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    calls = [call for message in answers for call in message.get("tool_calls", [])]
    choices: list[tuple[Any, ...]] = [
        ("object", "text") if calls else ("object",),
        ("empty", "null", "absent") if any(_says_calls_alone(message) for message in answers) else ("empty",),
        # Tags are the template's to know; between tags of our own, thoughts would be words of the answer.
        ("field", "tags")
        if "</think>" in template and any(REASONING_FIELD in message for message in answers)
        else ("field",),
        ("given", "known") if any(message["role"] in _KNOWN_ROLES for message in messages) else ("given",),
        ("text", "parts") if "type" in template and "text" in template else ("text",),
    ]
    # Roles that the log names are kept as long as any other choice renders them.
    product = itertools.product(*reversed(choices))
    for found in sorted(product, key=lambda form: (form[1] == "known", form[0] == "parts")):
        yield Form(*reversed(found))


def in_form(messages: Messages, form: Form) -> Messages:
    """`messages`, which are in their first shape, in another one."""
    return [_in_form(message, form) for message in messages]


def _in_form(message: dict[str, Any], form: Form) -> dict[str, Any]:
    result = dict(message)
    if form.roles == "known":
        result["role"] = _KNOWN_ROLES.get(message["role"], message["role"])
    if form.reasoning == "tags" and REASONING_FIELD in message:
        result["content"] = f"<think>\n{result.pop(REASONING_FIELD).strip()}\n</think>\n\n{message['content']}"
    if form.no_content != "empty" and _says_calls_alone(result):
        result["content"] = None
        if form.no_content == "absent":
            del result["content"]
    if form.arguments == "text" and "tool_calls" in message:
        result["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
    return result


def as_parts(messages: Messages, form: Form) -> Messages:
    """`messages` with content as parts if the form has it so; the last step, behind marks."""
    if form.content == "text":
        return messages
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _says_calls_alone(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) and message.get("content") == ""


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
