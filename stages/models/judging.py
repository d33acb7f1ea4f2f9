"""Judges: functions that say how good a completion of a prompt is."""

import math
from collections.abc import Callable, Sequence

from stages.contracts.named_function import errors_named, named_function
from stages.demo.world import demo_judge

Judge = Callable[[str, str], float]
"""Takes what the user wrote and the completion, both as plain text; gives a score, higher is better."""


def named_judge(name: str) -> Judge | None:
    """The judge that params.yaml names.

    Args:
        name: "none"; "demo", the true reward of the demo's world; or "package.module:function", a Python function
            of (prompt, completion).

    Returns:
        The judge, or None for "none".

    Raises:
        ValueError: the name leads to no function of two arguments.
    """
    if name == "none":
        return None
    if name == "demo":
        return demo_judge
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
        ValueError: the judge raises, or a score is no finite number.
    """
    return [
        [_as_score(_asked(judge, text, completion, name, prompt), name) for completion in row]
        for prompt, (text, row) in enumerate(zip(user_texts, completions, strict=True))
    ]


def _asked(judge: Judge, text: str, completion: str, name: str, prompt: int) -> float:
    with errors_named(f"judge {name}, at prompt {prompt + 1}"):
        return judge(text, completion)


def _as_score(score: float, name: str) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"judge {name}: expected a finite number for each completion, found {score!r}")
    return value
