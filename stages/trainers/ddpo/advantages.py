"""Rewards of images turned into advantages: how much better an image is than others, in standard deviations."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def epoch_advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each reward from the mean of all.

    Args:
        rewards: of all processes. Shape (n,).
    """
    advantages: NDArray[np.float64] = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    return advantages


class PromptRewards:
    """The last rewards of each prompt, which new images of it are compared with.

    Args:
        buffer_size: rewards remembered of each prompt.
        min_count: rewards of a prompt below which its images are compared with all of their epoch.
        known: what `state` gave, to go on from.
    """

    def __init__(self, buffer_size: int, min_count: int, known: dict[str, list[float]] | None = None) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self._rewards = {prompt: deque(values, maxlen=buffer_size) for prompt, values in (known or {}).items()}

    def advantages(self, prompts: Sequence[str], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of each reward from the mean of its prompt, after adding the rewards to what is remembered.

        Args:
            prompts: of all processes. Length n.
            rewards: shape (n,).
        """
        for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
            self._rewards.setdefault(prompt, deque(maxlen=self.buffer_size)).append(reward)
        sides = {prompt: self._compared_with(prompt, rewards) for prompt in set(prompts)}
        means = np.array([sides[prompt].mean() for prompt in prompts])
        deviations = np.array([sides[prompt].std() for prompt in prompts])
        advantages: NDArray[np.float64] = (rewards - means) / (deviations + 1e-6)
        return advantages

    def _compared_with(self, prompt: str, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        own = self._rewards[prompt]
        return rewards if len(own) < self.min_count else np.array(own)

    def state(self) -> dict[str, list[float]]:
        """The remembered rewards of each prompt, for a checkpoint."""
        return {prompt: list(values) for prompt, values in self._rewards.items()}
