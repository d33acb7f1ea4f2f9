"""Loss of a reward model on preference pairs, Ouyang et al. 2022, https://arxiv.org/abs/2203.02155.

The margin by which a chosen completion should win is that of Touvron et al. 2023, https://arxiv.org/abs/2307.09288;
the cost of scores whose mean over a pair isn't 0 is that of Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.losses.shapes import check_rows


class RewardLoss(NamedTuple):
    """Per pair, in the order given; both of shape (n,)."""

    losses: Tensor
    """Loss of each pair, after weighting; differentiable in the scores."""
    leads: Tensor
    """Score of the chosen completion minus that of the rejected one; detached."""


def reward_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margins: Tensor | None = None,
    weights: Tensor | None = None,
    centering: float | None = None,
) -> RewardLoss:
    """Cross-entropy of telling which completion of each pair people chose (Bradley-Terry).

    A pair costs w * (-log sigmoid(chosen - rejected - margin) + c * (chosen + rejected)^2).

    Args:
        chosen_scores: what the reward model gives the chosen completions. Shape (n,).
        rejected_scores: the same for the rejected completions of the same pairs. Shape (n,).
        margins: by how much each chosen completion should win at least. Shape (n,). None asks for none.
        weights: w, what each pair's loss is multiplied by. Losses aren't divided by their sum. Shape (n,). None weighs
            all pairs alike.
        centering: c, what scores cost that aren't centered around 0: their differences alone leave it open where they
            lie. None asks for nothing.

    Returns:
        Loss and lead of each pair.

    Raises:
        ValueError: tensors differ in shape or have more than one dimension, so that they would be paired up wrongly.
    """
    pairs = {"chosen_scores": chosen_scores, "rejected_scores": rejected_scores}
    pairs |= {} if margins is None else {"margins": margins}
    pairs |= {} if weights is None else {"weights": weights}
    check_rows(pairs)

    leads = chosen_scores - rejected_scores
    losses = -logsigmoid(leads if margins is None else leads - margins)
    if centering is not None:
        losses = losses + centering * (chosen_scores + rejected_scores).square()
    return RewardLoss(losses if weights is None else losses * weights, leads.detach())
