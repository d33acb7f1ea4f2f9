"""What PPO steers by between steps: the coefficient of the penalty, and the scale of the scores."""

from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

_MAX_CHANGE = 0.2
"""Relative distance from the target beyond which the coefficient changes no faster."""


class AdaptiveKLController:
    """A coefficient that rises while the policy is further from the reference than it should be, and else falls.

    As in section 2.2 of Ziegler et al. 2019, https://arxiv.org/abs/1909.08593.

    Args:
        init_kl_coef: coefficient at the start.
        target: distance that is steered to, in nats per response.
        horizon: responses over which a distance of 20 % changes the coefficient by 20 %.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Take in the distance `current` of `n_steps` responses."""
        error = min(max(current / self.target - 1.0, -_MAX_CHANGE), _MAX_CHANGE)
        self.value *= 1.0 + error * n_steps / self.horizon


class FixedKLController:
    """A coefficient that stays.

    Args:
        kl_coef: the coefficient.
    """

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Leave the coefficient as it is."""


class ScoreScaler:
    """Divides scores by the standard deviation of all scores seen so far, in all processes.

    Args:
        accelerator: knows the other processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of the squared deviations from the mean."""

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 as long as the scores have no spread, which leaves them as they are."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0

    def update(self, scores: Tensor) -> None:
        """Take in the scores of a step. Shape (n,)."""
        seen = self.accelerator.gather(scores.detach().to(self.accelerator.device)).cpu().double()
        count, mean = float(seen.numel()), seen.mean().item()
        squares = (seen - mean).square().sum().item()
        total = self.count + count
        gap = mean - self.mean
        self.squares += squares + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    def scaled(self, scores: Tensor, *, shift_mean: bool) -> Tensor:
        """The scores in units of the standard deviation.

        Args:
            scores: shape (n,).
            shift_mean: whether the mean of all scores is taken off.
        """
        shifted = scores - self.mean if shift_mean else scores
        return shifted / (self.std + torch.finfo(scores.dtype).eps)

    def state(self) -> dict[str, Any]:
        """The moments as plain numbers."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
