"""Spans of OpenTelemetry with what a model was asked and answered (`gen_ai`), and results of evaluations on them.

Read are lines of the collector's file exporter (OTLP as JSON) and spans one by one, under the conventions of
https://github.com/open-telemetry/semantic-conventions-genai.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stages.text.exports import Item, Record, below
from stages.text.layouts import parse_conversation as parsed
from stages.text.reasons import RejectedRowError
from stages.text.votes import is_missing

EVALUATION = "gen_ai.evaluation.result"
_LISTS = {"resourceSpans": ("scopeSpans", "spans"), "resourceLogs": ("scopeLogs", "logRecords")}


def is_telemetry(record: Record) -> bool:
    """Whether a record is a batch of spans or of log records, or one of them with attributes of `gen_ai`."""
    if any(isinstance(record.get(name), list) for name in _LISTS):
        return True
    has_place = not {"traceId", "trace_id", "spanId", "span_id", "context"}.isdisjoint(record)
    return has_place and any(name.startswith("gen_ai.") for name in _attributes(record))


def read_telemetry(record: Record) -> Iterator[Item]:
    """Answers of a record and the evaluations in it; spans and log records of another kind give none."""
    found = [record]
    for name, (middle, inner) in _LISTS.items():
        resources = record.get(name) or []
        found += [span for one in resources for scope in one.get(middle) or [] for span in scope.get(inner) or []]
    for span in found:
        yield from _items(span)


def _items(span: Record) -> Iterator[Item]:
    attributes, place = _attributes(span), span.get("context") or span
    trace, own = (place.get(key) or place.get(name) for key, name in (("traceId", "trace_id"), ("spanId", "span_id")))
    response = attributes.get("gen_ai.response.id")
    if (span.get("eventName") or span.get("name")) == EVALUATION:
        yield _evaluation(span, attributes, {"any": response, "span": own, "trace": trace})
        return
    asked, answered = (
        next((attributes[name] for name in (new, old) if name in attributes), _numbered(attributes, old))
        for new, old in (("gen_ai.input.messages", "gen_ai.prompt"), ("gen_ai.output.messages", "gen_ai.completion"))
    )
    if asked is not None and answered is not None:
        source = {"model": attributes.get("gen_ai.response.model", attributes.get("gen_ai.request.model"))}
        ids = _named({"span": own, "any": response})
        try:
            yield Item(_cells(attributes, asked, answered), source, own_ids=ids, other_ids=_named({"trace": trace}))
        except RejectedRowError as error:
            yield Item({}, error=error)
    for event in span.get("events") or []:
        if isinstance(event, Mapping) and (event.get("name") or event.get("eventName")) == EVALUATION:
            yield _evaluation(event, _attributes(event), {"span": own, "any": response, "trace": trace})


_NUMBERED = re.compile(r"(?P<name>gen_ai\.(?:prompt|completion))\.(?P<place>\d+)\.(?P<key>role|content|finish_reason)")


def _numbered(attributes: Mapping[str, Any], name: str) -> list[dict[str, Any]] | None:
    """Messages of which each part is an attribute, such as `gen_ai.prompt.0.content` of OpenLLMetry."""
    messages: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        if (match := _NUMBERED.fullmatch(key)) and match["name"] == name:
            messages.setdefault(int(match["place"]), {})[match["key"]] = value
    if any(key.startswith(f"{name}.") and ".tool_calls." in key for key in attributes):
        raise RejectedRowError("unsupported_content", "expected text, found calls of tools in attributes of their own")
    return [messages[place] for place in sorted(messages)] or None


def _cells(attributes: Mapping[str, Any], asked: Any, answered: Any) -> dict[str, Any]:
    system = _messages(attributes.get("gen_ai.system_instructions"), "system")
    answer = _messages(answered, "assistant")
    cells: dict[str, Any] = {"prompt": [*system, *_messages(asked, "user")], "completion": answer}
    cells["tools"] = [_tool(tool) for tool in parsed(attributes.get("gen_ai.tool.definitions")) or []]
    cells["conversation"] = attributes.get("gen_ai.conversation.id")
    reasons = parsed(attributes.get("gen_ai.response.finish_reasons"))
    said = [message.get("finish_reason") for message in parsed(answered) if isinstance(message, Mapping)]
    found = [*(reasons if isinstance(reasons, list) else []), *said]
    cells["finish_reason"] = next((reason for reason in found if not is_missing(reason)), None)
    return cells


def _tool(tool: Record) -> dict[str, Any]:
    return dict(tool) if "function" in tool else {"type": "function", "function": {**tool, "type": None}}


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    held = parsed(value)
    if held is None:
        return []
    if isinstance(held, str):
        return [{"role": role, "content": held}]
    if not isinstance(held, list) or not all(isinstance(message, Mapping) for message in held):
        raise RejectedRowError("bad_messages", f"expected messages of the {role}, found {held!r:.80}")
    # Instructions are a list of parts, without messages around them.
    whole = held if all("role" in message for message in held) else [{"role": role, "parts": held}]
    return [turn for message in whole for turn in _turns(message)]


def _turns(message: Record) -> Iterator[dict[str, Any]]:
    """A message as templates take it; results of tools are messages of their own."""
    if "parts" not in message:
        yield {"role": message["role"], "content": message.get("content")}
        return
    texts, calls, thoughts = [], [], []
    for part in message["parts"]:
        kind = part.get("type", "text")
        if kind == "text":
            texts.append(str(part.get("content", part.get("text", ""))))
        elif kind == "reasoning":
            thoughts.append(str(part.get("content", "")))
        elif kind == "tool_call":
            call = {"name": part.get("name"), "arguments": part.get("arguments") or {}}
            calls.append({"id": part.get("id"), "type": "function", "function": call})
        elif kind == "tool_call_response":
            yield {"role": "tool", "content": str(part.get("response", part.get("result", ""))),
                   "tool_call_id": part.get("id")}  # fmt: skip
        else:
            raise RejectedRowError("unsupported_content", f"expected text, found a part of the type {kind!r:.40}")
    if texts or calls:
        more: dict[str, Any] = {"tool_calls": calls} if calls else {}
        more |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
        yield {"role": message["role"], "content": "".join(texts), **more}


def _evaluation(event: Record, attributes: Mapping[str, Any], places: Mapping[str, Any]) -> Item:
    score = attributes.get("gen_ai.evaluation.score.value")
    label = attributes.get("gen_ai.evaluation.score.label") if is_missing(score) else score
    time = event.get("timeUnixNano") or event.get("observedTimeUnixNano") or event.get("timestamp")
    rater = attributes.get("enduser.id", attributes.get("user.id"))
    cells = {"label": label, "time": int(str(time)) if str(time).isdigit() else time, "rater": rater}
    named = {**places, "any": attributes.get("gen_ai.response.id", places["any"])}
    name = attributes.get("gen_ai.evaluation.name")
    return Item(cells, {}, targets=_named(named) or ("span:?",), score=None if name is None else str(name))


def _named(ids: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{kind}:{value}" for kind, value in ids.items() if not is_missing(value))


def _attributes(record: Record) -> dict[str, Any]:
    held = record.get("attributes")
    if isinstance(held, list):
        return {str(item.get("key")): _value(item.get("value")) for item in held if isinstance(item, Mapping)}
    return {str(name): value for name, value in held.items()} if isinstance(held, Mapping) else {}


def _value(value: Any) -> Any:
    """A value of OTLP as JSON, which names its type."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((kind, held),) = value.items()
    if kind == "arrayValue":
        return [_value(item) for item in below(held, "values") or []]
    if kind == "kvlistValue":
        return {item["key"]: _value(item.get("value")) for item in below(held, "values") or []}
    return int(held) if kind == "intValue" else held
