"""What the sections of a report on images say, and the images themselves as part of the page."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from markupsafe import Markup

from stages.page.charts import Estimate, interval_text, number
from stages.page.sections import Rows, Tile, Verdict, curve_charts, estimate, percent, short

_TILES = (
    ("true_reward/gain", "gain in reward"),
    ("true_reward/reference", "reward before"),
    ("true_reward/policy", "reward after"),
    ("win_rate", "images after that beat one before"),
)


def image_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether images are rewarded more than before, in plain words.

    Args:
        metrics: of the stage `diffusion_evaluation`.
    """
    found = {name: _needed(metrics, name) for name, _ in _TILES}
    gain, won = found["true_reward/gain"], found["win_rate"]
    before, after = found["true_reward/reference"], found["true_reward/policy"]
    counts = metrics["counts"]
    compared = (
        f"Over {counts['sampled_prompts']:,} held-out prompts with {counts['samples_per_prompt']:,} images each, the "
        f"reward {metrics['reward_function']} is {number(before.value)} before training and {number(after.value)} "
        f"after it: a difference of {interval_text(gain, signed=True)}. Both draw from the same noise."
    )
    wins = (
        f"Of pairs of an image after and one before, to the same prompt, {percent(won.value)} "
        f"({percent(won.low)} to {percent(won.high)}) are won by the one after, ties counted half. The intervals in "
        f"brackets cover {percent(0.95)}."
    )
    tiles = [
        Tile(
            title,
            number(found[name].value, signed=name.endswith("gain")),
            f"{number(found[name].low)} to {number(found[name].high)}",
        )
        for name, title in _TILES
    ]
    kind, headline = _judged(gain)
    return Verdict(kind, headline, [compared, wins], tiles)


def _needed(metrics: Mapping[str, Any], name: str) -> Estimate:
    found = estimate(metrics, name)
    if found is None:
        raise KeyError(name)
    return found


def _judged(gain: Estimate) -> tuple[Literal["better", "worse", "unsure"], str]:
    if gain.low > 0:
        return "better", "Images are rewarded more than before training"
    if gain.high < 0:
        return "worse", "Images are rewarded less than before training"
    return "unsure", "It is not shown that images are rewarded more than before training"


def image_training(metrics: Mapping[str, Any], curves: Rows) -> dict[str, Any]:
    """What was trained on, and the curves.

    Args:
        metrics: of the stage `ddpo_training`.
        curves: rows of its curves; entries are None where nothing was logged.
    """
    intro = (
        f"{str(metrics['method']).upper()} on {metrics['images']:,} images of {metrics['prompts']['train']:,} prompts, "
        f"in {metrics['epochs']:,} epochs with {metrics['steps']:,} steps; the mean reward of an epoch went from "
        f"{number(metrics['reward']['first'])} to {number(metrics['reward']['last'])}."
    )
    charts: list[Markup] = [
        *curve_charts(
            curves,
            (
                ("Mean reward of an epoch", ("reward_mean",), "reward"),
                ("Spread of the rewards of an epoch", ("reward_std",), "standard deviation"),
            ),
            over="epoch",
        ),
        *curve_charts(
            curves,
            (
                ("Loss", ("loss",), "loss"),
                ("Change of the policy", ("approx_kl",), "approximate KL"),
                ("Ratios out of their range", ("clipfrac",), "share"),
            ),
        ),
    ]
    return {"intro": intro, "charts": charts}


def image_grid(rows: Rows, *, num_examples: int) -> list[dict[str, Any]]:
    """Prompts with their images before and after, as data of the page.

    Args:
        rows: of the artifact `images`.
        num_examples: prompts shown, at most.
    """
    return [
        {
            "prompt": short(row["prompt"]),
            "sides": [
                ("Before", _pictures(row["reference"], row["reference_rewards"])),
                ("After", _pictures(row["policy"], row["policy_rewards"])),
            ],
        }
        for row in rows[:num_examples]
    ]


def _pictures(files: Sequence[bytes], rewards: Sequence[float]) -> list[dict[str, str]]:
    return [
        {"source": f"data:image/png;base64,{base64.b64encode(file).decode()}", "reward": number(reward)}
        for file, reward in zip(files, rewards, strict=True)
    ]
