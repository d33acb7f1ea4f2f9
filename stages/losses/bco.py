"""Loss of Binary Classifier Optimization (BCO), Jung et al. 2024, https://arxiv.org/abs/2404.04656.

Desired and undesired completions are told apart by a classifier whose logit is the implicit reward of the policy
minus a reward shift, which is a running mean of rewards (`stages.losses.moments`).
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.losses.shapes import check_labels, check_rows


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
