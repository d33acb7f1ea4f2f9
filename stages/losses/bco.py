"""Loss of Binary Classifier Optimization (BCO), Jung et al. 2024, https://arxiv.org/abs/2404.04656.

Desired and undesired completions are told apart by a classifier whose logit is the implicit reward of the policy
minus a reward shift, which is a running mean of rewards. The shift's state, `RewardMoments`, stands here as well.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.losses.shapes import check_labels, check_rows

ShiftKind = Literal["pooled", "balanced"]


class BCOLoss(NamedTuple):
    """Per row, in the order of the rows given; both of shape (n,)."""

    losses: Tensor
    """Loss of each row, after weighting; differentiable in the policy's log-probabilities."""
    rewards: Tensor
    """Implicit reward of each row; detached."""


def bco_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    labels: Tensor,
    *,
    beta: float,
    reward_shift: Tensor,
    weights: Tensor | None = None,
    logit_offsets: Tensor | None = None,
) -> BCOLoss:
    """Cross-entropy of telling desired rows from undesired ones by the implicit reward.

    The classifier's logit is z = r - shift + offset with reward r = beta * (policy - reference). A desired row costs
    w * -log sigmoid(z), an undesired one w * -log sigmoid(-z).

    Args:
        policy_logps: log-probability of each completion under the policy, summed over its tokens, in nats.
            Shape (n,).
        reference_logps: the same under the reference. Shape (n,).
        labels: whether each completion is desired. Boolean, shape (n,).
        beta: scale of the reward; the larger, the closer the policy stays to the reference.
        reward_shift: delta in the paper; taken as a constant. Shape ().
        weights: w, what each row's loss is multiplied by; with UDM, the density ratio of the prompt for undesired
            rows. Losses aren't divided by their sum. Shape (n,). None weighs all rows alike.
        logit_offsets: part of the logit that the prompt alone explains, such as the log density ratio. Shape (n,).
            None leaves it to the reward.

    Returns:
        Loss and reward of each row.

    Raises:
        ValueError: labels aren't boolean, or tensors that hold one entry per row differ in shape.
    """
    rows = {"policy_logps": policy_logps, "reference_logps": reference_logps, "labels": labels}
    rows |= {} if weights is None else {"weights": weights}
    rows |= {} if logit_offsets is None else {"logit_offsets": logit_offsets}
    check_rows(rows)
    check_labels(labels)

    rewards = beta * (policy_logps - reference_logps)
    logits = rewards - reward_shift.detach()
    if logit_offsets is not None:
        logits = logits + logit_offsets
    losses = -logsigmoid(logits.where(labels, -logits))
    return BCOLoss(losses if weights is None else losses * weights, rewards.detach())


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
