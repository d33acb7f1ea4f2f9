"""Rewards by name: what says how good sampled completions are."""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.models.scoring import RewardScorer

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]
"""Takes prompts and one completion of each, gives a number for each; higher is better."""


def load_reward(name: str | Path) -> Reward:
    """The reward that a name stands for.

    Args:
        name: folder of a reward model, whose prompts are texts after templating; or "package.module:function", a Python
            function of a list of prompts and a list of completions that gives a list of numbers.

    Raises:
        ValueError: the name leads to neither, or the reward gives something else than a finite number per completion.
    """
    if Path(name).is_dir():
        scorer = RewardScorer.load(Path(name))
        return _checked(lambda prompts, completions: scorer.texts(prompts, completions).tolist(), str(name))
    module_name, colon, function_name = str(name).partition(":")
    if not colon:
        raise ValueError(
            f"reward: expected the folder of a reward model or package.module:function, found {str(name)!r}"
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward: expected a function at {name}, found that {error}") from None
    if not callable(function):
        raise ValueError(f"reward: expected a function at {name}, found a {type(function).__name__}")
    return _checked(function, str(name))


def _checked(reward: Callable[..., Any], name: str) -> Reward:
    def call(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        found = [float(value) for value in reward(list(prompts), list(completions))]
        if len(found) != len(completions) or not all(map(math.isfinite, found)):
            raise ValueError(
                f"reward {name}: expected a finite number for each of {len(completions)} completions, found "
                f"{len(found)} numbers, {sum(map(math.isfinite, found))} of them finite"
            )
        return found

    return call
