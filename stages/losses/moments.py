"""Moments of the rewards that a training has seen, whose mean is the reward shift of BCO.

Jung et al. 2024, https://arxiv.org/abs/2404.04656.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

ShiftKind = Literal["pooled", "balanced"]


class RewardMoments(NamedTuple):
    """Count, mean and summed squared deviation of the rewards seen, of undesired rows (entry 0) and desired ones (1).

    Three tensors of shape (2,) on one device. Those of two sets of rows can be merged, so the moments don't depend
    on how rows were cut into batches or spread over processes, beyond rounding.
    """

    counts: Tensor
    means: Tensor
    deviations: Tensor

    @classmethod
    def empty(cls) -> "RewardMoments":
        """Moments of no rows."""
        return cls(*torch.zeros(3, 2, dtype=torch.float64).unbind())

    @classmethod
    def of(cls, rewards: Tensor, labels: Tensor) -> "RewardMoments":
        """Moments of the rows given; a class without rows has mean 0.

        Args:
            rewards: shape (n,).
            labels: whether each row is desired. Boolean, shape (n,).
        """
        kind = torch.float32 if rewards.device.type == "mps" else torch.float64
        classes = torch.stack([~labels, labels]).to(kind)
        values = rewards.detach().to(kind)
        counts = classes.sum(-1)
        means = classes @ values / counts.clamp(min=1)
        deviations = (classes * (values - means[:, None]).square()).sum(-1)
        return cls(counts, means, deviations)

    def merged(self, other: "RewardMoments", *, decay: float = 1.0) -> "RewardMoments":
        """Moments of both sets of rows, of which these here count `decay` times."""
        old = self.counts.to(other.counts) * decay
        counts = old + other.counts
        share = other.counts / counts.clamp(min=torch.finfo(counts.dtype).tiny)
        gap = other.means - self.means.to(other.means)
        deviations = self.deviations.to(gap) * decay + other.deviations + gap.square() * old * share
        return RewardMoments(counts, self.means.to(gap) + gap * share, deviations)

    def shift(self, kind: ShiftKind) -> Tensor:
        """The reward shift; 0 before any row was seen. Float32, shape ().

        Args:
            kind: "pooled" is the mean over all rows; "balanced" the mean of the two classes' means, as far as seen,
                which a majority of one class doesn't pull to its side.
        """
        weights = self.counts if kind == "pooled" else (self.counts > 0).to(self.counts)
        total = weights.sum()
        return ((weights * self.means).sum() / total.where(total > 0, 1.0)).float()

    def pooled_variance(self) -> Tensor:
        """Biased variance over the rows of both classes. Shape ()."""
        total = self.counts.sum().clamp(min=torch.finfo(self.counts.dtype).tiny)
        mean = (self.counts * self.means).sum() / total
        return (self.deviations + self.counts * (self.means - mean).square()).sum() / total
