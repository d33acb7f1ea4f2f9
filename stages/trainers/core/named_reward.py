"""Rewards by name: what says how good sampled completions are.

A reward is a reward model, the true reward of the demo's world, or a Python function of your own. The arguments of a
function say what it is given: `prompt` and `completion` one of each, `prompts` and `completions` lists of them, for
which it gives a list of numbers. A third argument, `row` or `rows`, gets the other columns of the log.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.contracts.named_function import errors_named, named_function
from stages.demo.world import demo_judge
from stages.models.scoring import RewardScorer

Row = Mapping[str, Any]


class Reward(NamedTuple):
    """Something that gives a number for each completion of a prompt; higher is better."""

    name: str
    """For messages."""
    prompts_as: Literal["templated", "user"]
    """Whether prompts are wanted after templating, or as what the user wrote."""
    function: Callable[[Sequence[str], Sequence[str], Sequence[Row], Sequence[bool]], Sequence[float]]
    """Takes what a call takes, in that order."""

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        rows: Sequence[Row] | None = None,
        are_complete: Sequence[bool] | None = None,
    ) -> list[float]:
        """Score completions.

        Args:
            prompts: the prompt of each.
            completions: texts without special tokens.
            rows: other columns of the log for each; None has none.
            are_complete: whether each completion ended by itself, so that a reward model reads it with its end; None:
                all did.

        Raises:
            ValueError: the numbers aren't one per completion, or not finite.
        """
        ended = [True] * len(prompts) if are_complete is None else are_complete
        found = [float(value) for value in self.function(prompts, completions, rows or [{}] * len(prompts), ended)]
        if len(found) != len(completions) or not all(map(math.isfinite, found)):
            raise ValueError(
                f"reward {self.name}: expected a finite number for each of {len(completions)} completions, found "
                f"{len(found)} numbers, {sum(map(math.isfinite, found))} of them finite"
            )
        return found


def named_reward(name: str, reward_models: Sequence[Path] = ()) -> Reward:
    """The reward that params.yaml names.

    Args:
        name: "model", the mean of the scores of reward models; "demo", the true reward of the demo's world; or
            "package.module:function".
        reward_models: their folders.

    Raises:
        ValueError: reward models are missing or of no use to that name, the name leads to no reward, or the function
            takes other arguments.
    """
    if (name == "model") != bool(reward_models):
        raise ValueError(
            f"reward: expected --reward-models with reward model and with no other, found "
            f"{', '.join(map(str, reward_models)) or 'none'} with {name}; mend the stage's entry in dvc.yaml, or name "
            "another reward in params.yaml"
        )
    if name != "model":
        return load_reward(name)
    rewards = [load_reward(folder) for folder in reward_models]
    if len(rewards) == 1:
        return rewards[0]
    return Reward(
        " + ".join(map(str, reward_models)),
        "templated",
        lambda *asked: [sum(scores) / len(rewards) for scores in zip(*(r(*asked) for r in rewards), strict=True)],
    )


def load_reward(name: str | Path) -> Reward:
    """The reward that a name stands for.

    Args:
        name: folder of a reward model; "demo", the true reward of the demo's world (a path of that name is a folder);
            or "package.module:function".

    Raises:
        ValueError: the name leads to no reward, or the function takes other arguments.
    """
    if name == "demo":
        return _of_function("demo", demo_judge)
    if Path(name).is_dir():
        scorer = RewardScorer.load(Path(name))
        return Reward(
            str(name), "templated", lambda prompts, texts, _, ended: scorer.texts(prompts, texts, ended).tolist()
        )
    own = named_function(str(name), where="reward", known=("demo", "the folder of a reward model"))
    return _of_function(str(name), own)


def _of_function(name: str, function: Any) -> Reward:
    """A reward of a function, called as the names of its arguments say."""
    names = list(inspect.signature(function).parameters)
    if names in (["prompts", "completions"], ["prompts", "completions", "rows"]):
        width = len(names)
        return Reward(name, "user", _naming_errors(name, lambda *columns: function(*map(list, columns[:width]))))
    if names in (["prompt", "completion"], ["prompt", "completion", "row"]):
        width = len(names)
        return Reward(
            name,
            "user",
            _naming_errors(name, lambda *columns: [function(*each) for each in zip(*columns[:width], strict=True)]),
        )
    raise ValueError(
        f"reward {name}: expected a function of prompt and completion, or of prompts and completions, and row or rows "
        f"if it wants the log's other columns, found one of {', '.join(names) or 'nothing'}"
    )


def _naming_errors(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*columns: Any) -> Any:
        with errors_named(f"reward {name}"):
            return function(*columns)

    return named
