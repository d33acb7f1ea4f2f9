"""Exports of the tools that feedback is collected with, read by their shape.

Each reader takes a record apart into items: an answer with or without a vote on it, or a vote on an answer that
stands elsewhere. An item has cells by our names, and ids by which answers and votes find each other.
"""

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.contracts.rows import canonical_json
from stages.text.column_names import (
    CONVERSATION_IDS,
    QUESTION_PARTS,
    canonical,
    first_of,
    is_metadata,
    is_vote,
    own_id,
    references,
    vote_in,
)
from stages.text.layouts import as_json_value, parse_conversation
from stages.text.reasons import RejectedRowError
from stages.text.votes import VoteWords, is_missing, vote_or_none

Record = Mapping[str, Any]


class Format(NamedTuple):
    """How one kind of record is told and read."""

    fits: Callable[[Record], bool]
    """Whether a record has this shape."""
    read: Callable[[Record], Iterator["Item"]]
    """Takes it apart; raises RejectedRowError if it can't be used."""


@dataclass
class Item:
    """An answer, a vote or both."""

    cells: dict[str, Any]
    """By our names; `rater`, `time`, `conversation` and `votes_for` among them."""
    source: dict[str, Any] = field(default_factory=dict)
    """What else the record says."""
    own_ids: tuple[str, ...] = ()
    """Ids that are this answer's own."""
    other_ids: tuple[str, ...] = ()
    """Ids of what this answer is part of; they find it where nothing has them as its own."""
    targets: tuple[str, ...] = ()
    """Of a vote without answer, the ids that it names, the most particular first."""
    score: str | None = None
    """Name of the score, where a log holds several."""
    error: RejectedRowError | None = None
    """Why it can't be used."""
    unread_parts: tuple[str, ...] = ()
    """What may be part of the question, such as a context, and isn't in the prompt; dots lead into the record."""
    is_context: bool = False
    """Whether it is an answer of a conversation in which nothing is rated: no demonstration unless params say so."""
    is_message: bool = False
    """Whether it is an answer in a table of messages, whose conversation stands in other rows."""


# ---- Open WebUI ----


def _is_open_webui(record: Record) -> bool:
    data, meta = record.get("data"), record.get("meta")
    return isinstance(data, Mapping) and "rating" in data and (isinstance(meta, Mapping) or "snapshot" in record)


def _open_webui(record: Record) -> Iterator[Item]:
    data, meta = record["data"], record.get("meta") or {}
    shared = {
        "label": data["rating"],
        "rater": record.get("user_id"),
        "time": record.get("updated_at", record.get("created_at")),
        "conversation": meta.get("chat_id"),
    }
    source = {"model": data.get("model_id", meta.get("model_id")), "reason": data.get("reason")}
    source |= {"comment": data.get("comment"), "tags": data.get("tags"), "user": record.get("user_id")}
    chat = below(record, "snapshot", "chat", "chat") or below(record, "snapshot", "chat")
    if chat is None:
        yield Item(shared, source, targets=_named("message", meta.get("message_id")))
        return
    messages = _messages_of_chat(chat)
    wanted = str(meta.get("message_id"))
    if wanted not in messages:
        raise RejectedRowError("missing_turns", f"the rated message {wanted} isn't in the snapshot of its chat")
    if (broken := why_broken(messages[wanted])) is not None:
        raise broken
    path = path_to(messages, wanted)
    model = messages[wanted].get("model") or source["model"]
    yield Item({**shared, "messages": path}, {**source, "model": model}, own_ids=_named("message", wanted))


def _messages_of_chat(chat: Record) -> dict[str, Record]:
    held = below(chat, "history", "messages") or chat.get("messages") or {}
    if isinstance(held, Mapping):
        return {str(key): {"id": key, **message} for key, message in held.items()}
    listed = [message for message in held if isinstance(message, Mapping)]
    ids = [str(message.get("id", i)) for i, message in enumerate(listed)]
    # A list stands in the order of the conversation, if its messages don't name their parents.
    before = [None, *ids]
    return {name: {"parentId": before[i], **message} for i, (name, message) in enumerate(zip(ids, listed, strict=True))}


def _is_chat(record: Record) -> bool:
    listed = below(record, "chat", "messages")
    is_list = isinstance(listed, list) and bool(listed) and all(isinstance(message, Mapping) for message in listed)
    return isinstance(below(record, "chat", "history", "messages"), Mapping) or is_list


def _chat(record: Record) -> Iterator[Item]:
    shared = {"conversation": record.get("id"), "rater": record.get("user_id")}
    yield from rated_messages(_messages_of_chat(record["chat"]), shared)


# ---- trees and lists of messages ----


def rated_messages(messages: Mapping[str, Record], shared: Record) -> Iterator[Item]:
    """Each rated answer with the turns before it.

    Args:
        messages: by id, each naming the one before it.
        shared: cells that all have.

    Raises:
        RejectedRowError: no answer is rated, or turns are missing.
    """
    num_rated = 0
    answers = [name for name, message in messages.items() if speaker_of(message) == "assistant"]
    for name in answers:
        message = messages[name]
        found = vote_in(message)
        if found is None:
            continue
        num_rated += 1
        if (broken := why_broken(message)) is not None:
            yield Item({}, error=broken)
            continue
        time = message.get("updatedAt", message.get("createdAt", message.get("timestamp")))
        cells = {**shared, "label": found[1], "time": time, "messages": path_to(messages, name)}
        source = {"model": message.get("model")} if message.get("model") else {}
        yield Item(cells, source, own_ids=_named("message", name))
    if num_rated:
        return
    if not answers:
        raise RejectedRowError("no_label", "expected a conversation with an answer, found none")
    yield from _unrated_messages(messages, answers, shared)


def _unrated_messages(messages: Mapping[str, Record], answers: Sequence[str], shared: Record) -> Iterator[Item]:
    """Each answer of a conversation, on which votes may stand elsewhere."""
    for name in answers:
        if (broken := why_broken(messages[name])) is not None:
            yield Item({}, own_ids=_named("message", name), error=broken)
        elif not is_missing(text_of(messages[name])):
            cells = {"conversation": shared.get("conversation"), "messages": path_to(messages, name)}
            yield Item(cells, own_ids=_named("message", name), is_context=True)


def why_broken(message: Record) -> RejectedRowError | None:
    """Why a message is no whole answer, as far as it says so itself; None of one that says nothing of the kind."""
    error, unfinished = message.get("error"), message.get("unfinished")
    is_error = not is_missing(error) and str(error).casefold() not in _NO and error not in ({}, [])
    is_cut = not is_missing(unfinished) and str(unfinished).casefold() not in _NO
    is_cut |= message.get("done") is False or str(message.get("status")).casefold() in _BROKEN
    if not (is_error or is_cut):
        return None
    what = "an error in place of an answer" if is_error else "an answer that was cut off while it was written"
    return RejectedRowError("broken_answer", f"expected a whole answer, found {what}")


_NO = frozenset({"false", "0", "none", "null", "no"})
_BROKEN = frozenset({"error", "failed", "incomplete", "in_progress", "cancelled", "canceled"})


def speaker_of(message: Record) -> str | None:
    """Role of who wrote a message; None if it doesn't say."""
    if "isCreatedByUser" in message:
        return "user" if str(message["isCreatedByUser"]).casefold() in ("true", "1") else "assistant"
    author = message.get("author")
    spoken = author.get("role") if isinstance(author, Mapping) else None
    spoken = message.get("role", message.get("from", message.get("sender", spoken)))
    return _SPEAKERS.get(str(spoken).casefold(), None if spoken is None else str(spoken))


_SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "customer", "you"), "user"),
    **dict.fromkeys(("gpt", "ai", "assistant", "model", "bot", "chatgpt", "aimessagechunk", "agent"), "assistant"),
}


def text_of(message: Record) -> Any:
    """What a message says: text or parts of it."""
    for key in ("content", "text", "value", "message"):
        if not is_missing(message.get(key)) and message.get(key) != []:
            content = message[key]
            if isinstance(content, Mapping) and "parts" in content:
                return [
                    part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content["parts"]
                ]
            return content
    return None


def plain_message(message: Record) -> dict[str, Any]:
    """A message with what a template reads and nothing else."""
    kept = {
        key: message[key] for key in ("name", "tool_calls", "tool_call_id", "reasoning_content") if message.get(key)
    }
    content = text_of(message)
    if isinstance(content, str) and speaker_of(message) == "assistant" and _REASONING.search(content):
        kept.setdefault("reasoning_content", "\n\n".join(map(_thought, _REASONING.findall(content))))
        content = _REASONING.sub("", content).lstrip()
    if isinstance(content, list):
        thoughts = [
            part["think"] for part in content if isinstance(part, Mapping) and isinstance(part.get("think"), str)
        ]
        if thoughts:
            content = [part for part in content if not (isinstance(part, Mapping) and "think" in part)]
            kept.setdefault("reasoning_content", "\n\n".join(thoughts))
    return {"role": speaker_of(message), "content": content, **kept}


# What Open WebUI shows of a model's thoughts, in the text of its answer.
_REASONING = re.compile(
    r'<details type="reasoning"[^>]*>\s*(?:<summary>.*?</summary>)?\s*(.*?)\s*</details>\s*', re.DOTALL
)


def _thought(text: str) -> str:
    return "\n".join(re.sub(r"^> ?", "", html.unescape(line)) for line in text.split("\n"))


def parent_of(message: Record) -> str | None:
    """The id of the message before this one; None of the first."""
    name = first_of(message, ("parent_id", "parent_message_id", "parent", "parent_uuid", "reply_to"))
    parent = message.get(name) if name else None
    if parent is None or str(parent) in ("", "root", "client-created-root") or not str(parent).strip("0-"):
        return None
    return str(parent)


def path_to(messages: Mapping[str, Record], name: str) -> list[dict[str, Any]]:
    """The messages from the beginning of a conversation to one of them.

    Raises:
        RejectedRowError: one of them is missing.
    """
    path: list[dict[str, Any]] = []
    seen: set[str] = set()
    place: str | None = name
    while place is not None:
        if place not in messages or place in seen:
            raise RejectedRowError(
                "missing_turns", f"expected the turns before message {name}, found no message {place}"
            )
        seen.add(place)
        message = messages[place]
        # Nodes without a speaker, such as the root of a tree, hold no text.
        if speaker_of(message) is not None:
            path.append(plain_message(message))
        place = parent_of(message)
    return path[::-1]


def message_id(message: Record) -> str | None:
    """The id of a message in a table or a list of messages."""
    name = first_of(message, ("message_id", "id", "uuid"))
    value = message.get(name) if name else None
    return None if is_missing(value) else str(value)


def is_message_row(record: Record) -> bool:
    """Whether a record is one message that names the one before it or its conversation."""
    if speaker_of(record) is None or not isinstance(text_of(record), str | list) or "conversations" in record:
        return False
    return message_id(record) is not None and (
        first_of(record, ("parent_id", "parent_message_id", "parent", *CONVERSATION_IDS)) is not None
    )


def _is_librechat(record: Record) -> bool:
    held = record.get("messages", record.get("messagesTree"))
    if not isinstance(held, list) or not all(isinstance(message, Mapping) for message in held):
        return False
    return any("messageId" in message or "parentMessageId" in message for message in held)


def _librechat(record: Record) -> Iterator[Item]:
    shared = {"conversation": record.get("conversationId"), "rater": record.get("user")}
    yield from rated_messages(_messages_of_librechat(record), shared)


def _messages_of_librechat(record: Record) -> dict[str, Record]:
    messages: dict[str, Record] = {}
    waiting: list[tuple[Record, str | None]] = [
        (message, None) for message in record.get("messages", record.get("messagesTree"))
    ]
    while waiting:
        message, parent = waiting.pop(0)
        name = message_id(message) or str(len(messages))
        messages[name] = {"parentMessageId": parent, **message}
        waiting += [(child, name) for child in message.get("children") or [] if isinstance(child, Mapping)]
    return messages


def is_reply_tree(record: Record) -> bool:
    """Whether a record is a prompt with the answers to it below it, as those of OpenAssistant are."""
    prompt = record.get("prompt")
    return isinstance(prompt, Mapping) and isinstance(prompt.get("replies"), list)


def messages_of_tree(record: Record) -> dict[str, Record]:
    """The messages of a tree by their ids, each with that of the one before it."""
    messages: dict[str, Record] = {}
    waiting: list[tuple[Record, str | None]] = [(record["prompt"], None)]
    while waiting:
        message, parent = waiting.pop(0)
        name = message_id(message) or str(len(messages))
        messages[name] = {**message, "parent_id": parent}
        waiting += [(child, name) for child in message.get("replies") or [] if isinstance(child, Mapping)]
    return messages


def _has_rated_turns(record: Record) -> bool:
    held = record.get("messages", record.get("conversations", record.get("conversation")))
    if not isinstance(held, list) or not all(isinstance(message, Mapping) for message in held):
        return False
    return any(speaker_of(message) == "assistant" and vote_in(message) is not None for message in held)


def _rated_turns(record: Record) -> Iterator[Item]:
    key = next(key for key in ("messages", "conversations", "conversation") if key in record)
    rest = {name: as_json_value(value) for name, value in record.items() if name != key}
    turns: list[dict[str, Any]] = []
    if isinstance(record.get("system"), str) and record["system"] and speaker_of(record[key][0]) != "system":
        turns.append({"role": "system", "content": record["system"]})
    conversation = first_of(record, ("conversation_id", "chat_id", "chat", "session_id", "thread_id", "id"))
    rater = first_of(record, ("rater", "annotator", "user_id", "user"))
    for number, message in enumerate(record[key]):
        turns.append(plain_message(message))
        found = vote_in(message) if speaker_of(message) == "assistant" else None
        if found is None:
            continue
        cells = {"messages": list(turns), "label": found[1], "tools": record.get("tools")}
        cells["conversation"] = record[conversation] if conversation else None
        cells["rater"] = record[rater] if rater else None
        cells["time"] = message.get("time", message.get("timestamp", record.get("time")))
        yield Item(cells, {**rest, "turn": number})


# ---- ChatGPT ----


def _is_chatgpt(record: Record) -> bool:
    held = record.get("mapping")
    return isinstance(held, Mapping) and any(isinstance(node, Mapping) and "parent" in node for node in held.values())


def _chatgpt(record: Record) -> Iterator[Item]:
    messages = {
        str(name): {**(node.get("message") or {}), "parent": node.get("parent")}
        for name, node in record["mapping"].items()
        if isinstance(node, Mapping)
    }
    conversation = record.get("conversation_id", record.get("id"))
    yield from rated_messages(messages, {"conversation": conversation})


# ---- answers that were asked for again ----


def regenerations(record: Record) -> Iterator[Item]:
    """Pairs of answers to one message in a tree of them: the one that was gone on from, else the last, is better."""
    chat = below(record, "snapshot", "chat", "chat") or below(record, "snapshot", "chat") or record.get("chat")
    if isinstance(chat, Mapping):
        messages = _messages_of_chat(chat)
    elif _is_librechat(record):
        messages = _messages_of_librechat(record)
    else:
        return
    conversation = below(record, "meta", "chat_id") or record.get("conversationId") or record.get("id")
    answers: dict[str, list[str]] = {}
    votes = {name: found[1] for name, message in messages.items() if (found := vote_in(message))}
    votes |= {str(below(record, "meta", "message_id")): below(record, "data", "rating")} if "data" in record else {}
    for name, message in messages.items():
        parent = parent_of(message)
        is_answer = speaker_of(message) == "assistant" and not is_missing(text_of(message))
        if parent is not None and is_answer and why_broken(message) is None:
            answers.setdefault(parent, []).append(name)
    gone_on = {parent_of(message) for message in messages.values()}
    for asked, names in answers.items():
        went_on = [name for name in names if name in gone_on]
        better = went_on[0] if len(went_on) == 1 else names[-1]
        for worse in names if len(went_on) < 2 and len(names) > 1 else ():
            # A vote that says otherwise knows better.
            is_agreed = all(
                name not in votes or vote_or_none(votes[name], VoteWords()) is is_better
                for name, is_better in ((better, True), (worse, False))
            )
            if worse != better and is_agreed:
                pair = {"chosen": [plain_message(messages[better])], "rejected": [plain_message(messages[worse])]}
                cells = {"prompt": path_to(messages, asked), "conversation": conversation, **pair}
                yield Item(cells, {"pair": "regeneration"})


# ---- LangSmith ----


def _is_langsmith_run(record: Record) -> bool:
    marks = {"run_type", "feedback_stats", "trace_id", "dotted_order", "session_id", "feedback", "start_time"}
    return "inputs" in record and "outputs" in record and not marks.isdisjoint(record)


def _langsmith_run(record: Record) -> Iterator[Item]:
    unread = _unread_parts(record, "inputs")
    cells, ids = _exchange(record.get("inputs"), record.get("outputs")), _named("run", record.get("id"))
    cells["time"] = record.get("start_time")
    cells["conversation"] = below(record, "extra", "metadata", "thread_id")
    source = {"name": record.get("name"), "run_type": record.get("run_type")}
    others = _named("trace", record.get("trace_id"))
    stats = _unpacked(record.get("feedback_stats"))
    votes = [(str(key), _counted(found)) for key, found in (stats if isinstance(stats, Mapping) else {}).items()]
    listed = _unpacked(record.get("feedback"))
    votes += [
        (str(vote.get("key")), {"label": _score(vote), "time": vote.get("created_at"), **_correction(vote)})
        for vote in (listed if isinstance(listed, list) else [])
        if isinstance(vote, Mapping)
    ]
    if (broken := why_broken(record)) is not None:
        yield Item({}, own_ids=ids, error=broken)
        return
    if not ids and votes:
        # Nothing else can name this answer, so each vote has it beside it.
        yield from (Item({**cells, **vote}, source, unread_parts=unread, score=key) for key, vote in votes)
        return
    yield Item(dict(cells), source, own_ids=ids, other_ids=others, unread_parts=unread)
    for key, vote in votes:
        yield Item(vote, {}, targets=ids, score=key)


_LANGSMITH_COLUMN = re.compile(r"(?P<part>inputs?|outputs?|feedback|reference)[._](?P<key>.+)")


def _langsmith_columns(record: Record) -> dict[str, dict[str, Any]]:
    """Of a table of runs, what stands in columns such as `inputs.question` and `feedback.correctness`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in record.items():
        match = _LANGSMITH_COLUMN.fullmatch(name)
        if match and (match["part"].endswith("s") or name[len(match["part"])] == "." or match["part"] == "feedback"):
            found.setdefault(match["part"].removesuffix("s"), {})[match["key"]] = _unpacked(value)
    return found


def _is_langsmith_table(record: Record) -> bool:
    return {"input", "output"} <= _langsmith_columns(record).keys() and record.keys().isdisjoint({"inputs", "outputs"})


def _langsmith_table(record: Record) -> Iterator[Item]:
    found = _langsmith_columns(record)
    stats = found.get("feedback", {}).pop("stats", None)
    votes = [{"key": key, "score": value} for key, value in found.get("feedback", {}).items()]
    rest = {name: value for name, value in record.items() if not _LANGSMITH_COLUMN.fullmatch(name)}
    yield from _langsmith_run(
        {**rest, "inputs": found["input"], "outputs": found["output"], "feedback": votes, "feedback_stats": stats}
    )


def _counted(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping) or is_missing(found.get("avg")) or not found.get("n"):
        return {"label": None}
    number, mean = int(found["n"]), float(found["avg"])
    votes_for = mean * number
    if number > 1 and 0 <= mean <= 1 and abs(votes_for - round(votes_for)) < 1e-6:
        return {"up": round(votes_for), "down": number - round(votes_for)}
    return {"label": mean}


def _is_langsmith_feedback(record: Record) -> bool:
    return "run_id" in record and "key" in record and not {"score", "value"}.isdisjoint(record)


def _langsmith_feedback(record: Record) -> Iterator[Item]:
    rater = record.get("user_id") or below(record, "feedback_source", "user_id")
    time = record.get("modified_at") or record.get("created_at")
    cells = {"label": _score(record), "rater": rater, "time": time, "event": own_id(record), **_correction(record)}
    yield Item(cells, {}, targets=_named("run", record["run_id"]), score=str(record["key"]))


def _correction(vote: Record) -> dict[str, Any]:
    """What should have been answered; nothing where it is the score that was corrected."""
    try:
        turns = _turns(_unpacked(vote.get("correction")), "assistant", _ANSWER_KEYS)
    except RejectedRowError:
        return {}
    return {"correction": turns}


def _score(vote: Record) -> Any:
    for key in ("score", "value"):
        if not is_missing(vote.get(key)):
            return vote[key]
    return None


# ---- Langfuse ----


def _is_langfuse_score(record: Record) -> bool:
    ids = {"traceId", "observationId", "trace_id", "observation_id"}
    return (
        "name" in record
        and not {"value", "stringValue"}.isdisjoint(record)
        and not ids.isdisjoint(record)
        and ("input" not in record)
    )


def _langfuse_score(record: Record) -> Iterator[Item]:
    yield _langfuse_vote(record, "")


def _langfuse_vote(record: Record, trace: str) -> Item:
    observation = record.get("observationId", record.get("observation_id"))
    trace = record.get("traceId", record.get("trace_id")) or trace
    # Of a category the number is its place in a list, and the word is what was said.
    word = record.get("stringValue", record.get("string_value"))
    value = record.get("value") if is_missing(word) else word
    time = record.get("updatedAt", record.get("timestamp", record.get("createdAt")))
    rater = record.get("authorUserId") or record.get("userId")
    cells = {"label": value, "time": time, "rater": rater, "event": own_id(record)}
    targets = _named("observation", observation) or _named("trace", trace) or ("trace:?",)
    return Item(cells, {}, targets=targets, score=str(record["name"]))


def _is_langfuse(record: Record) -> bool:
    marks = {"traceId", "projectId", "observations", "scores", "bookmarked", "htmlPath", "sessionId", "trace_id"}
    return "input" in record and "output" in record and not marks.isdisjoint(record) and "instruction" not in record


def _langfuse(record: Record) -> Iterator[Item]:
    trace = record.get("traceId", record.get("trace_id"))
    name = "trace" if trace is None else "observation"
    ids, others = _named(name, record.get("id")), _named("trace", trace)
    source = {key: record.get(key) for key in ("name", "model", "type") if record.get(key)}
    try:
        if (broken := why_broken({"status": record.get("level")})) is not None:
            raise broken
        cells = _exchange(record["input"], record["output"])
        cells |= {"conversation": record.get("sessionId"), "tools": below(record, "input", "tools")}
        yield Item(cells, source, own_ids=ids, other_ids=others, unread_parts=_unread_parts(record, "input"))
    except RejectedRowError as error:
        yield Item({}, own_ids=ids, other_ids=others, error=error)
    for score in record.get("scores") or []:
        if isinstance(score, Mapping) and "name" in score:
            yield _langfuse_vote({**score, "observationId": score.get("observationId")}, str(trace or record.get("id")))
    for observation in record.get("observations") or []:
        if isinstance(observation, Mapping) and observation.get("type") == "GENERATION":
            yield from _langfuse({"traceId": record.get("id"), **observation})


# ---- OpenAI ----


def _is_openai(record: Record) -> bool:
    asked = record.get("request", record.get("body", record))
    answered = record.get("response", record.get("completion", record))
    if not isinstance(asked, Mapping) or not isinstance(answered, Mapping):
        return False
    answered = answered.get("body", answered)
    asked = asked.get("body", asked)
    if not isinstance(asked, Mapping) or not isinstance(answered, Mapping):
        return False
    has_answer = isinstance(answered.get("choices"), list) or isinstance(answered.get("output"), list)
    return has_answer and isinstance(asked.get("messages", asked.get("input")), list | str)


def _openai(record: Record) -> Iterator[Item]:
    asked = record.get("request", record.get("body", record))
    asked = asked.get("body", asked)
    answered = record.get("response", record.get("completion", record))
    answered = answered.get("body", answered)
    # A stored completion holds both: what was asked beside the choices.
    answered = {key: value for key, value in answered.items() if key not in ("messages", "input")}
    cells = _exchange(asked.get("messages", asked.get("input")), answered)
    if isinstance(asked.get("instructions"), str):
        cells["prompt"] = [{"role": "system", "content": asked["instructions"]}, *cells["prompt"]]
    cells["tools"] = asked.get("tools") or record.get("tools")
    rest = {
        key: value
        for key, value in record.items()
        if key not in ("request", "response", "body", "messages", "input", "choices", "completion", "tools", "output")
    }
    if found := vote_in({key: value for key, value in rest.items() if key != "usage"}):
        cells["label"] = found[1]
    elif any(is_vote(key) for key in rest):
        cells["label"] = None
    metadata = rest.get("metadata")
    if "label" not in cells and isinstance(metadata, Mapping) and (found := vote_in(metadata)):
        cells["label"] = found[1]
    rater, time = first_of(rest, ("rater", "user_id", "user")), first_of(rest, ("time", "timestamp", "created_at"))
    cells |= {"rater": rest[rater] if rater else None, "time": rest[time] if time else None}
    ids = {answered.get("id"), record.get("id"), record.get("custom_id"), record.get("request_id")} - {None}
    source = {key: as_json_value(value) for key, value in rest.items() if not isinstance(value, Mapping | list)}
    names = tuple(f"any:{name}" for name in sorted(map(str, ids)))
    yield Item(cells, {**source, "model": answered.get("model")}, own_ids=names)


def _is_openai_preference(record: Record) -> bool:
    return {"input", "preferred_output", "non_preferred_output"} <= record.keys()


def _openai_preference(record: Record) -> Iterator[Item]:
    """What OpenAI's preference fine-tuning takes: a request and two answers."""
    cells = _exchange(record["input"], record["preferred_output"])
    worse = _exchange(record["input"], record["non_preferred_output"])
    pair = {"chosen": cells.pop("completion"), "rejected": worse["completion"]}
    used = ("input", "preferred_output", "non_preferred_output")
    yield Item({**cells, **pair}, {key: as_json_value(value) for key, value in record.items() if key not in used})


# ---- what a model was asked and what it answered, whatever holds it ----

_TEXT_KEYS = ("question", "query", "input", "prompt", "text", "content", "message", "user_input", "human_input")
_ANSWER_KEYS = (
    "output",
    "answer",
    "response",
    "text",
    "content",
    "result",
    "completion",
    "message",
    "reply",
    "generation",
)


def _unread_parts(record: Record, name: str) -> tuple[str, ...]:
    """Of what was asked, where keys stand that may be part of the question and that `_exchange` doesn't read."""
    asked = _unpacked(record.get(name))
    if _is_call(asked):
        asked, name = asked["kwargs"], f"{name}.kwargs"
    if not isinstance(asked, Mapping) or "role" in asked or "kwargs" in asked:
        return ()
    has_turns = any(isinstance(asked.get(key), list) and asked[key] for key in ("messages", "generations", "choices"))
    read = {"system", "tools"} if has_turns else set(_TEXT_KEYS)
    return tuple(
        f"{name}.{key}"
        for key, value in asked.items()
        if key not in read and not is_missing(value) and value not in ([], {})
        if canonical(key) in QUESTION_PARTS or (isinstance(value, str) and " " in value and not is_metadata(key))
    )


def _unpacked(value: Any) -> Any:
    """What tables hold as JSON text; other text as it is."""
    return parse_conversation(value) if isinstance(value, str) else value


def _is_packed(value: Any) -> bool:
    return isinstance(value, str) and isinstance(_unpacked(value), Mapping | list)


def _is_quoted(value: Any) -> bool:
    """Whether a text stands in quotes as JSON, as tables hold it that were made of JSON."""
    if not isinstance(value, str) or value[:1] != '"':
        return False
    try:
        return isinstance(json.loads(value), str)
    except ValueError:
        return False


def _exchange(asked: Any, answered: Any) -> dict[str, Any]:
    if _is_quoted(asked) and _is_quoted(answered):
        asked, answered = json.loads(asked), json.loads(answered)
    if _is_packed(asked) and (held := _unpacked(asked)) is not None:
        # An answer alone may well be JSON that a model wrote; beside a question in JSON it was packed with it.
        asked, answered = held, _unpacked(answered)
    elif (
        _is_packed(answered) and isinstance(held := _unpacked(answered), Mapping) and {"role", "content"} <= held.keys()
    ):
        answered = held
    prompt, answer = _turns(asked, "user", _TEXT_KEYS), _turns(answered, "assistant", _ANSWER_KEYS)
    # What agents and graphs give back is the whole conversation, its beginning included.
    if len(answer) > len(prompt) and [_said(turn) for turn in answer[: len(prompt)]] == [
        _said(turn) for turn in prompt
    ]:
        answer = answer[len(prompt) :]
    cells: dict[str, Any] = {"prompt": prompt, "completion": answer}
    if isinstance(asked, Mapping) and asked.get("tools"):
        cells["tools"] = asked["tools"]
    if isinstance(answered, Mapping) and isinstance(answered.get("choices"), list) and answered["choices"]:
        cells["finish_reason"] = answered["choices"][0].get("finish_reason")
    return cells


def _said(turn: Record) -> tuple[Any, Any]:
    return turn.get("role"), turn.get("content")


def _turns(value: Any, role: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """A value as turns of a conversation; plain text is one turn of `role`."""
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value:
        value = value[0] if len(value) == 1 and isinstance(value[0], list) else value
        # Thoughts are items of their own in what the Responses API gives, mostly empty or encrypted.
        said = [item for item in value if not (isinstance(item, Mapping) and item.get("type") == "reasoning")]
        return [_turn(item, role) for item in said]
    if isinstance(value, Mapping):
        return _turns_below(value, role, keys)
    raise _no_turns(value, role)


def _no_turns(value: Any, role: str) -> RejectedRowError:
    found = f"{as_json_value(value)!s:.80}"
    return RejectedRowError("unknown_layout", f"expected what the {role} said as text or messages, found {found}")


def _turns_below(value: Record, role: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    if _is_call(value):
        return _turns(_argument(value), role, keys)
    for key in ("messages", "generations", "choices"):
        if isinstance(value.get(key), list) and value[key]:
            listed = value[key]
            turns = _turns(listed if key == "messages" else _first_answer(listed), role, keys)
            system = value.get("system")
            is_apart = isinstance(system, str) and system.strip() and turns[0]["role"] != "system"
            return [{"role": "system", "content": system}, *turns] if is_apart else turns
    if "role" in value or "kwargs" in value:
        return [_turn(value, role)]
    found = [key for key in keys if not is_missing(value.get(key))]
    if len(found) == 1 or (found and role == "assistant"):
        return _turns(value[found[0]], role, keys)
    raise _no_turns(value, role)


def _is_call(value: Any) -> bool:
    """Whether a value is what a traced function was called with."""
    return (
        isinstance(value, Mapping) and isinstance(value.get("args"), list) and isinstance(value.get("kwargs"), Mapping)
    )


def _argument(call: Record) -> Any:
    """The arguments by name, or the only one without a name."""
    unnamed = [value for value in call["args"] if isinstance(value, str | list | Mapping)]
    if len(unnamed) > 1 or (unnamed and any(key in call["kwargs"] for key in ("messages", *_TEXT_KEYS))):
        raise RejectedRowError(
            "unknown_layout",
            f"expected one argument that is the question, found {len(call['args'])} without a name and these with one: "
            f"{', '.join(call['kwargs']) or 'none'}; "
            "ingestion.format: package.module:function reads such records",
        )
    return unnamed[0] if unnamed else call["kwargs"]


def _first_answer(found: list[Any]) -> list[Any]:
    listed = found[0] if isinstance(found[0], list) else found
    if len({canonical_json(as_json_value(_without_place(one))) for one in listed}) > 1:
        raise RejectedRowError(
            "ambiguous_vote",
            f"expected one answer, found {len(listed)}, and nothing says which of them was meant; keep that one",
        )
    first = found[0][0] if isinstance(found[0], list) and found[0] else found[0]
    if isinstance(first, Mapping) and isinstance(first.get("message"), Mapping):
        return [first["message"]]
    return [first]


def _without_place(choice: Any) -> Any:
    return {key: choice[key] for key in choice if key != "index"} if isinstance(choice, Mapping) else choice


def _turn(value: Any, role: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"role": role, "content": value}
    if not isinstance(value, Mapping):
        raise RejectedRowError("bad_messages", f"expected a message, found {value!r:.80}")
    inner = value.get("kwargs", value)
    inner = inner.get("data", inner) if isinstance(inner, Mapping) else value
    kind = inner.get("role") or _langchain_role(inner.get("type"), value.get("id"))
    if inner.get("type") == "function_call":
        call = {"name": inner.get("name"), "arguments": inner.get("arguments")}
        calls = [{"id": inner.get("call_id"), "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if inner.get("type") == "function_call_output":
        return {"role": "tool", "content": inner.get("output"), "tool_call_id": inner.get("call_id")}
    kept = {key: inner[key] for key in ("name", "tool_calls", "tool_call_id", "reasoning_content") if inner.get(key)}
    if calls := below(inner, "additional_kwargs", "tool_calls"):
        kept["tool_calls"] = calls
    speaker = _SPEAKERS.get(str(kind).casefold(), kind) if kind else role
    return {"role": speaker, "content": text_of(inner), **kept}


_LANGCHAIN = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "aimessagechunk": "assistant"}


def _langchain_role(kind: Any, path: Any) -> str | None:
    if isinstance(kind, str) and kind.casefold() in _LANGCHAIN:
        return _LANGCHAIN[kind.casefold()]
    if isinstance(path, list) and path:
        return _LANGCHAIN.get(str(path[-1]).casefold().removesuffix("chunk").removesuffix("message"))
    return None


def below(record: Any, *keys: str) -> Any:
    """What stands below some keys; None where one of them is missing."""
    for key in keys:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def _named(kind: str, value: Any) -> tuple[str, ...]:
    return () if is_missing(value) else (f"{kind}:{value}",)


def row_targets(record: Record) -> tuple[str, ...]:
    """The ids that a vote in a table of its own names; its own id is one only where there is no other."""
    named = [f"{kind}:{value}" for kind, value in references(record)]
    own = own_id(record)
    return tuple(named) or ((f"any:{own}",) if own is not None else ())


def row_ids(record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of an answer in a table: its own, and those of what it is part of."""
    own = own_id(record)
    named = references({name: value for name, value in record.items() if canonical(name).endswith(("_id", "_uuid"))})
    particular = [f"{kind}:{value}" for kind, value in named if kind != "trace"]
    whole = [f"{kind}:{value}" for kind, value in named if kind == "trace"]
    return ((f"any:{own}",) if own is not None else ()) + tuple(particular), tuple(whole)


FORMATS: Mapping[str, Format] = {
    "open_webui": Format(_is_open_webui, _open_webui),
    "open_webui_chat": Format(_is_chat, _chat),
    "chatgpt": Format(_is_chatgpt, _chatgpt),
    "librechat": Format(_is_librechat, _librechat),
    "langsmith_feedback": Format(_is_langsmith_feedback, _langsmith_feedback),
    "langsmith_run": Format(_is_langsmith_run, _langsmith_run),
    "langsmith_table": Format(_is_langsmith_table, _langsmith_table),
    "langfuse_score": Format(_is_langfuse_score, _langfuse_score),
    "openai_preference": Format(_is_openai_preference, _openai_preference),
    "openai": Format(_is_openai, _openai),
    "langfuse": Format(_is_langfuse, _langfuse),
    "rated_turns": Format(_has_rated_turns, _rated_turns),
}
"""By name; the first that fits reads a record."""
