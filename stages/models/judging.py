"""Judges: functions that say how good a completion of a prompt is."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.contracts.named_function import named_function
from stages.demo.world import load_judge

Judge = Callable[[str, str], float]
"""Takes what the user wrote and the completion, both as plain text; gives a score, higher is better."""


def named_judge(name: str, *, truth: Path | None) -> Judge | None:
    """The judge that params.yaml names.

    Args:
        name: "none"; "demo", the true reward of the demo's world; or "package.module:function", a Python function
            of (prompt, completion).
        truth: the file that the demo's judge reads; None if there is none.

    Returns:
        The judge, or None for "none".

    Raises:
        ValueError: the name leads to no function of two arguments, or the demo's judge is asked for without its file.
    """
    if name == "none":
        return None
    if name == "demo":
        if truth is None:
            raise ValueError("judge: expected a truth file for judge demo, found none; set inputs.truth or judge none")
        return load_judge(truth)
    return named_function(name, where="judge", known=("none", "demo"), arguments=("prompt", "completion"))


def judge_all(
    judge: Judge, user_texts: Sequence[str], completions: Sequence[Sequence[str]], *, name: str
) -> list[list[float]]:
    """Score of each completion of each prompt.

    Args:
        judge: the judge.
        user_texts: what the user wrote, per prompt.
        completions: completions per prompt, plain text.
        name: name of the judge, for messages.

    Raises:
        ValueError: a score is no finite number.
    """
    return [
        [_as_score(judge(text, completion), name) for completion in row]
        for text, row in zip(user_texts, completions, strict=True)
    ]


def _as_score(score: float, name: str) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"judge {name}: expected a finite number for each completion, found {score!r}")
    return value


def user_text(messages: str) -> str:
    """What the user wrote last, as plain text.

    Args:
        messages: the column `messages` of `completions`: JSON with the prompt as given, a text or a list of turns.

    Returns:
        Text of the last turn of the user; a prompt that is no list of turns whole.
    """
    prompt = json.loads(messages)["prompt"]
    if not isinstance(prompt, list):
        return str(prompt)
    turns = [turn for turn in prompt if turn.get("role") == "user"] or prompt
    content = turns[-1].get("content") if turns else ""
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
