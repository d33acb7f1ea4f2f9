"""Exports of tools that people compare and rate answers with: Label Studio and Argilla."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stages.text.column_names import first_of
from stages.text.columns import PROMPTS, place_of_word, two_answers
from stages.text.exports import Item, Record
from stages.text.layouts import as_json_value
from stages.text.rankings import Judged, pairs_of
from stages.text.reasons import RejectedRowError
from stages.text.votes import is_missing

_ANSWERS = ("answer", "response", "completion", "output", "text", "generation")


def is_label_studio(record: Record) -> bool:
    """Whether a record is a task with annotations."""
    listed = record.get("annotations")
    return isinstance(record.get("data"), Mapping) and isinstance(listed, list) and bool(listed)


def read_label_studio(record: Record) -> Iterator[Item]:
    """Each annotation of a task: a comparison of two answers, or a vote on one."""
    data = record["data"]
    for annotation in record["annotations"]:
        results = [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]
        if annotation.get("was_cancelled") or not results:
            yield Item({}, error=RejectedRowError("no_label", "expected an annotation, found one that was skipped"))
            continue
        by = annotation.get("completed_by")
        by = by.get("email", by.get("id")) if isinstance(by, Mapping) else by
        about = {"rater": by, "time": annotation.get("updated_at", annotation.get("created_at"))}
        for result in results:
            yield from _annotated(data, result, about, sides=str(result.get("to_name", "")).split(","))


def _annotated(data: Record, result: Record, about: Mapping[str, Any], *, sides: Sequence[str]) -> Iterable[Item]:
    value = result.get("value") or {}
    kind = str(result.get("type"))
    said = value.get("selected", value.get(kind)) if isinstance(value, Mapping) else value
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    if kind == "ranker":
        return _ranked(data, str(result.get("to_name")), said, about, score=str(result.get("from_name")))
    if kind == "pairwise":
        pair = (sides[0], sides[1]) if len(sides) == 2 and set(sides) <= data.keys() else None
        return [_compared(data, pair, said, about, score=str(result.get("from_name")))]
    return [_rated(data, said, about, score=str(result.get("from_name")))]


def _ranked(data: Record, list_name: str, said: Any, about: Mapping[str, Any], *, score: str) -> Iterable[Item]:
    """Pairs of a list of answers that was put in order, the best first."""
    orders = [said] if isinstance(said, list) else list(said.values()) if isinstance(said, Mapping) else []
    listed = data.get(list_name)
    answers = {
        str(answer.get("id")): answer.get(first_of(answer, ("body", "html", "text", "title", *_ANSWERS)) or "")
        for answer in (listed if isinstance(listed, list) else [])
        if isinstance(answer, Mapping)
    }
    if len(orders) != 1 or not isinstance(orders[0], list) or not {str(name) for name in orders[0]} <= answers.keys():
        detail = f"{score}: expected one order of the answers {', '.join(answers)}, found {said!r:.80}"
        return [Item({}, error=RejectedRowError("unknown_label", detail))]
    judged = [Judged(answers[str(name)], -place) for place, name in enumerate(orders[0])]
    return pairs_of({**_asked(data), **about}, judged, _others(data, (list_name,)), score=score)


def is_argilla(record: Record) -> bool:
    """Whether a record has fields and responses to questions on them."""
    return isinstance(record.get("fields"), Mapping) and isinstance(record.get("responses"), Mapping | list)


def read_argilla(record: Record) -> Iterator[Item]:
    """Each submitted response: a comparison of two answers, or a vote on one."""
    fields, responses = record["fields"], record["responses"]
    for question, listed in _questions(responses):
        for response in listed:
            if response.get("status", "submitted") == "submitted":
                about = {"rater": response.get("user_id"), "time": record.get("updated_at")}
                yield from _responded(fields, question, response.get("value"), about)
            else:
                yield Item({}, error=RejectedRowError("no_label", f"{question}: the response isn't submitted"))


def _questions(responses: Any) -> Iterator[tuple[str, list[Record]]]:
    """By question, its responses: as records hold them, or as the server does, by response."""
    if isinstance(responses, Mapping):
        for name, listed in responses.items():
            yield str(name), [one for one in listed if isinstance(one, Mapping)]
        return
    for response in responses:
        for name, held in (response.get("values") or {}).items():
            value = held.get("value") if isinstance(held, Mapping) else held
            yield str(name), [{**response, "value": value}]


def _responded(fields: Record, question: str, value: Any, about: Mapping[str, Any]) -> Iterable[Item]:
    if isinstance(value, list) and (places := _places(fields, value)):
        judged = [Judged(fields[name], -place) for name, place in places.items()]
        return pairs_of({**_asked(fields), **about}, judged, _others(fields, tuple(places)), score=question)
    pair = two_answers(fields)
    if pair is not None and isinstance(value, str):
        return [_compared(fields, pair, value, about, score=question)]
    return [_rated(fields, value, about, score=question)]


def _places(fields: Record, order: list[Any]) -> dict[str, float]:
    """By field, its place in an order of several: a list of names, or of names with ranks; empty of anything else."""
    if order and all(isinstance(one, Mapping) and {"rank", "value"} <= one.keys() for one in order):
        places = {str(one["value"]): float(one["rank"]) for one in order}
    else:
        places = {str(name): float(place) for place, name in enumerate(order)}
    return places if len(places) > 1 and places.keys() <= fields.keys() else {}


def _compared(data: Record, pair: tuple[str, str] | None, word: Any, about: Mapping[str, Any], *, score: str) -> Item:
    pair = pair or two_answers(data)
    if pair is None:
        error = RejectedRowError("unknown_layout", f"expected two answers to compare, found {', '.join(data)}")
        return Item({}, error=error)
    place = {pair[0]: "first", pair[1]: "second"}.get(str(word)) or place_of_word(str(word))
    if place == "tie":
        return Item({}, error=RejectedRowError("tie", "neither of the two answers is better"))
    if place is None:
        error = RejectedRowError("unknown_label", f"expected {pair[0]} or {pair[1]}, found {word!r:.80}")
        return Item({}, error=error)
    chosen, rejected = pair if place == "first" else pair[::-1]
    cells = {**_asked(data), **about, "chosen": data[chosen], "rejected": data[rejected]}
    return Item(cells, _others(data, pair), score=score)


def _rated(data: Record, value: Any, about: Mapping[str, Any], *, score: str) -> Item:
    name = first_of(data, _ANSWERS)
    if name is None or is_missing(value):
        reason = "no_label" if name else "unknown_layout"
        return Item({}, error=RejectedRowError(reason, f"{score}: expected a vote on an answer, found {value!r:.60}"))
    cells = {**_asked(data), **about, "completion": data[name], "label": value}
    return Item(cells, _others(data, (name,)), score=score)


def _asked(data: Record) -> dict[str, Any]:
    name = first_of(data, PROMPTS)
    return {"prompt": data[name] if name else None, "conversation": data.get("conversation_id")}


def _others(data: Record, read: Sequence[str]) -> dict[str, Any]:
    left = {*read, first_of(data, PROMPTS)}
    return {str(name): as_json_value(value) for name, value in data.items() if name not in left}
