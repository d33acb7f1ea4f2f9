"""The cells of a row by our names, as the shape of its log says."""

from collections.abc import Iterable, Mapping
from typing import Any

from stages.contracts.rows import canonical_json
from stages.text.columns import CONVERSATIONS, Place, Settings, Shape, has, value_at
from stages.text.layouts import COLUMNS, as_json_value, is_answered, is_conversation
from stages.text.layouts import parse_conversation as parsed
from stages.text.reasons import RejectedRowError
from stages.text.votes import VoteWords, is_missing, is_no_vote, plain_scalar, rating_of, unwrapped, vote_or_none


def place_of(row: Mapping[str, Any], shape: Shape) -> Place:
    """Which of the two answers of a row is better.

    Raises:
        RejectedRowError: the row doesn't say.
    """
    if shape.one_hot:
        pressed = [place for name, place in shape.one_hot.items() if vote_or_none(row.get(name), VoteWords())]
        if len(pressed) == 1:
            return pressed[0]
        reason = "unknown_label" if pressed else "no_label"
        raise RejectedRowError(reason, f"expected one of {', '.join(shape.one_hot)} to be true, found {len(pressed)}")
    if shape.scores:
        return _place_by_scores(row, shape.scores)
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


def _place_by_scores(row: Mapping[str, Any], names: tuple[str, str]) -> Place:
    found = [rating_of(row.get(name)) for name in names]
    if found[0] is None or found[1] is None:
        raise RejectedRowError("no_label", f"expected numbers in {' and '.join(names)}, found none")
    if found[0].number == found[1].number:
        return "tie"
    return "first" if found[0].number > found[1].number else "second"


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
    _add_turns(row, shape, cells, source, left)
    if shape.pair is not None and any(has(row, name) for name in shape.pair):
        _choose(row, shape, cells, source)
    return cells, source


def _ask_in_turns(cells: dict[str, Any]) -> None:
    """Take a conversation that ends with a question as the prompt of an answer that stands beside it."""
    name = next((name for name in CONVERSATIONS if name in cells), None)
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


def _add_turns(
    row: Mapping[str, Any], shape: Shape, cells: dict[str, Any], source: dict[str, Any], left: set[str]
) -> None:
    """Put a system prompt and the turns before a plain question where they belong."""
    prompt = cells.get("prompt")
    path = shape.names.get("history", "history")
    is_question = path in shape.parts or path in [found for name, found in shape.names.items() if name != "history"]
    history = parsed(value_at(row, path)) if path not in left and not is_question else None
    system = cells.get("system")
    if prompt is None or not (history or (isinstance(system, str) and system.strip())):
        return
    turns = parsed(prompt)
    turns = list(turns) if is_conversation(turns) else [{"role": "user", "content": prompt}]
    if history:
        source.pop(path, None)
        cells.pop("history", None)
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
    for name in (first, second, shape.winner or "", *(shape.scores or ()), *shape.one_hot):
        source.pop(name, None)
    cells.pop("label", None)
    if place == "tie":
        raise RejectedRowError("tie", "neither of the two answers is better")
    turn = value_at(row, shape.turn) if shape.turn else None
    answers = tuple(_up_to_turn(value_at(row, name), turn) for name in (first, second))
    cells["chosen"], cells["rejected"] = answers if place == "first" else answers[::-1]
