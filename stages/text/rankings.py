"""Several answers to one question with a rank or scores of each: every two that differ make a pair."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from stages.text.column_names import CONVERSATIONS, QUESTION_PARTS, RATERS, TIMES, canonical, first_of
from stages.text.columns import ANSWERS, PROMPTS
from stages.text.exports import (
    Item,
    Record,
    below,
    messages_of_tree,
    parent_of,
    path_to,
    plain_message,
    rated_messages,
    speaker_of,
    text_of,
)
from stages.text.layouts import as_json_value
from stages.text.reasons import RejectedRowError
from stages.text.votes import is_missing, rating_of

_LISTS = ("answers", "responses", "completions", "outputs", "candidates", "generations", "replies", "samples")
_TEXTS = (*ANSWERS, "text", "content", "body", "html", "title")
_RANKS = frozenset({"rank", "ranks", "ranking", "rankings"})
_SCORES = ("overall_score", "fine_grained_score", "score", "scores", "rating", "ratings", "reward", "rewards")


class Judged(NamedTuple):
    """An answer and how good it is."""

    answer: Any
    value: float
    """A larger one is better."""


def pairs_of(
    cells: Mapping[str, Any], judged: Sequence[Judged], source: Mapping[str, Any], *, score: str | None = None
) -> Iterator[Item]:
    """Each two answers of which one is better as a pair; two that are as good are refused as a tie.

    Args:
        cells: what all pairs have, by our names.
        judged: answers to one question.
        source: what else is known.
        score: by which they were judged, where there may be others.
    """
    for first, second in itertools.combinations(judged, 2):
        if first.value == second.value:
            yield Item({}, error=RejectedRowError("tie", "neither of the two answers is better"), score=score)
            continue
        better, worse = (first, second) if first.value > second.value else (second, first)
        yield Item({**cells, "chosen": better.answer, "rejected": worse.answer}, dict(source), score=score)


# ---- lists of answers ----


def is_ranked_list(record: Record) -> bool:
    """Whether a record is a question with a list of answers that are ranked or scored."""
    return first_of(record, PROMPTS) is not None and bool(_judged_lists(record))


def read_ranked_list(record: Record) -> Iterator[Item]:
    """The pairs of each rank and score."""
    asked = first_of(record, PROMPTS) or ""
    used = {asked, *(name for name in record if canonical(name) in (*_LISTS, *_RANKS, *_SCORES))}
    source = {str(name): as_json_value(value) for name, value in record.items() if name not in used}
    about = {"rater": RATERS, "time": TIMES, "conversation": CONVERSATIONS}
    cells = {ours: record[name] for ours, wanted in about.items() if (name := first_of(record, wanted))}
    unread = tuple(name for name in source if canonical(name) in QUESTION_PARTS and source[name] not in (None, "", []))
    for score, judged in _judged_lists(record).items():
        for item in pairs_of({**cells, "prompt": record[asked]}, judged, source, score=score):
            yield replace(item, unread_parts=unread)


def _judged_lists(record: Record) -> dict[str, list[Judged]]:
    """By rank or score, the answers that have one."""
    name = first_of(record, _LISTS)
    answers = record.get(name or "")
    if not isinstance(answers, list) or len(answers) < 2:
        return {}
    if all(isinstance(answer, str) for answer in answers):
        beside = {key: value for key, value in record.items() if isinstance(value, list) and len(value) == len(answers)}
        columns = {key: dict(enumerate(value)) for key, value in beside.items() if _sign(key)}
        texts: list[Any] = answers
    elif all(isinstance(answer, Mapping) for answer in answers):
        texts = [answer.get(first_of(answer, _TEXTS) or "") for answer in answers]
        columns = {}
        for i, answer in enumerate(answers):
            for key, value in _values_of(answer):
                columns.setdefault(key, {})[i] = value
    else:
        return {}
    found: dict[str, list[Judged]] = {}
    for key, values in columns.items():
        ratings = {i: rating_of(value) for i, value in values.items()}
        judged = [Judged(texts[i], _sign(key) * rating.number) for i, rating in ratings.items() if rating is not None]
        if len(judged) > 1 and all(isinstance(answer.answer, str | list) for answer in judged):
            found[key] = judged
    return found


def _values_of(answer: Record) -> Iterator[tuple[str, Any]]:
    """The rank and scores of an answer, those of single attributes among them."""
    for key, value in answer.items():
        if _sign(key) and not isinstance(value, Mapping | list):
            yield str(key), value
        elif isinstance(value, Mapping) and canonical(key) in ("annotations", "ratings", "scores"):
            for name, inner in value.items():
                held = inner.get("Rating", inner.get("rating")) if isinstance(inner, Mapping) else inner
                if not is_missing(held):
                    yield str(name), held


def _sign(key: str) -> int:
    """1 of a score, -1 of a rank, of which the smallest is the best, and 0 of anything else."""
    name = canonical(key)
    return -1 if name in _RANKS else 1 if name in _SCORES or (name not in _TEXTS and name.endswith("_score")) else 0


# ---- OpenAI, summarize from feedback ----


def is_summary_comparison(record: Record) -> bool:
    """Whether a record is a text with two summaries and the better one's number."""
    listed = record.get("summaries")
    return isinstance(record.get("info"), Mapping) and isinstance(listed, list) and "choice" in record


def read_summary_comparison(record: Record) -> Iterator[Item]:
    """The pair of summaries."""
    listed, choice = record["summaries"], record["choice"]
    texts = [summary.get("text") if isinstance(summary, Mapping) else summary for summary in listed]
    if choice not in range(len(texts)) or len(texts) != 2:
        error = RejectedRowError("unknown_label", f"expected choice as 0 or 1 of two summaries, found {choice!r:.40}")
        yield Item({}, error=error)
        return
    cells = {**_of_info(record), "chosen": texts[choice], "rejected": texts[1 - choice]}
    yield Item(cells, _about(record), unread_parts=_unread_info(record))


def is_summary_rating(record: Record) -> bool:
    """Whether a record is a text with one summary that is rated along several axes."""
    return isinstance(record.get("info"), Mapping) and isinstance(below(record, "summary", "axes"), Mapping)


def read_summary_rating(record: Record) -> Iterator[Item]:
    """The summary with each of its ratings."""
    summary = record["summary"]
    for name, rating in summary["axes"].items():
        cells = {**_of_info(record), "completion": summary.get("text"), "label": rating}
        yield Item(cells, _about(record), score=str(name), unread_parts=_unread_info(record))


def _of_info(record: Record) -> dict[str, Any]:
    info = record["info"]
    return {"prompt": info.get("post") or info.get("article"), "rater": record.get("worker")}


def _unread_info(record: Record) -> tuple[str, ...]:
    return tuple(f"info.{name}" for name in ("title", "subreddit") if not is_missing(record["info"].get(name)))


def _about(record: Record) -> dict[str, Any]:
    return {name: as_json_value(record.get(name)) for name in ("batch", "split") if name in record}


# ---- trees of messages ----


def read_reply_tree(record: Record) -> Iterator[Item]:
    """Pairs of answers to one message that people ranked, or, in a tree without ranks, each rated answer."""
    messages, shared = messages_of_tree(record), {"conversation": record.get("message_tree_id")}
    pairs = list(_ranked_replies(messages, shared))
    yield from pairs or rated_messages(messages, shared)


def _ranked_replies(messages: Mapping[str, Record], shared: Record) -> Iterator[Item]:
    ranked: dict[str, list[Judged]] = {}
    for message in messages.values():
        rank, parent = rating_of(message.get("rank")), parent_of(message)
        is_answer = speaker_of(message) == "assistant" and not is_missing(text_of(message))
        if rank is not None and parent is not None and is_answer:
            ranked.setdefault(parent, []).append(Judged([plain_message(message)], -rank.number))
    for parent, judged in ranked.items():
        yield from pairs_of({**shared, "prompt": path_to(messages, parent)}, judged, {"pair": "ranking"})
