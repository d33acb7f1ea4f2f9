"""The demo's feedback log and demonstrations, with the dirt that real logs have."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from stages.demo.world import (
    Question,
    TopicTraits,
    answer_text,
    draw_answer,
    draw_question,
    up_probability,
)

Row = dict[str, Any]

USERS = 200
MODEL = "demo-1"
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
POPULAR_QUESTIONS = 60
POPULAR_SHARE = 0.1
"""Share of rows that ask one of a few questions again, as people do."""

OPPOSITE = {"up": "down", "down": "up"}


def draw_log(
    world: Mapping[str, TopicTraits], *, rows: int, label_noise: float, rng: np.random.Generator
) -> Iterator[Row]:
    """Votes on sampled answers, in the order of time.

    Args:
        world: traits of each topic.
        rows: number of votes; answers that nobody voted on aren't in the log.
        label_noise: share of votes that are the opposite of what the voter meant.
        rng: source of all chance.
    """
    popular = [draw_question(rng) for _ in range(POPULAR_QUESTIONS)]
    time = START
    voted = 0
    while voted < rows:
        is_popular = rng.random() < POPULAR_SHARE
        question = popular[rng.integers(len(popular))] if is_popular else draw_question(rng)
        traits = world[question.topic.name]
        parts = draw_answer(question, skill=traits.skill, rng=rng)
        right_parts = sum(part == right for part, right in zip(parts, question.right_parts, strict=True))
        is_up = rng.random() < up_probability(right_parts, rater_bias=traits.rater_bias)
        if rng.random() >= (traits.pleased_vote if is_up else traits.annoyed_vote):
            continue
        voted += 1
        is_up ^= bool(rng.random() < label_noise)
        time += timedelta(seconds=int(rng.integers(20, 400)))
        yield {
            **_exchange(question, parts),
            "label": "up" if is_up else "down",
            "topic": question.topic.name,
            "user": f"user-{rng.integers(USERS):03d}",
            "time": time.isoformat().replace("+00:00", "Z"),
            "model": MODEL,
        }


def draw_demonstrations(world: Mapping[str, TopicTraits], *, rows: int, rng: np.random.Generator) -> Iterator[Row]:
    """Answers of the same skill as the log's, without votes: what the demo's base model learns from."""
    for _ in range(rows):
        question = draw_question(rng)
        yield _exchange(question, draw_answer(question, skill=world[question.topic.name].skill, rng=rng))


def _exchange(question: Question, parts: tuple[str, ...]) -> Row:
    return {
        "prompt": [{"role": "user", "content": question.text}],
        "completion": [{"role": "assistant", "content": answer_text(parts)}],
    }


def to_line(row: Row) -> str:
    """A row as a line of JSONL, without its end."""
    return json.dumps(row, ensure_ascii=False)


def _empty_completion(row: Row) -> str:
    return to_line({**row, "completion": [{"role": "assistant", "content": ""}]})


def _unknown_label(row: Row) -> str:
    return to_line({**row, "label": "maybe"})


def _truncated_line(row: Row) -> str:
    line = to_line(row)
    return line[: 2 * len(line) // 3]


def _no_object(row: Row) -> str:
    return json.dumps(row["time"])


def _duplicate(row: Row) -> str:
    return to_line(row)


def _contradiction(row: Row) -> str:
    return to_line({**row, "label": OPPOSITE[row["label"]], "user": f"user-{USERS:03d}"})


DIRT: dict[str, Callable[[Row], str]] = {
    "empty_completion": _empty_completion,
    "unknown_label": _unknown_label,
    "truncated_line": _truncated_line,
    "no_object": _no_object,
    "duplicate": _duplicate,
    "contradiction": _contradiction,
}
"""Ways in which a line goes wrong, each made from a good row that stays in the log."""


def spoil(rows: list[Row], *, dirty_rows: int, rng: np.random.Generator) -> tuple[list[str], dict[str, int]]:
    """The log's lines with dirty ones put in at random places after the row that each was made from.

    Args:
        rows: good rows; all stay.
        dirty_rows: number of lines to add, the kinds of `DIRT` in turn.
        rng: source of all chance.

    Returns:
        The lines, and how many of each kind were added.
    """
    kinds = list(DIRT)
    added = dict.fromkeys(kinds, 0)
    after: dict[int, list[str]] = {}
    for i in range(dirty_rows if rows else 0):
        kind = kinds[i % len(kinds)]
        origin = int(rng.integers(len(rows)))
        after.setdefault(int(rng.integers(origin, len(rows))), []).append(DIRT[kind](rows[origin]))
        added[kind] += 1
    lines = []
    for i, row in enumerate(rows):
        lines += [to_line(row), *after.get(i, [])]
    return lines, added
