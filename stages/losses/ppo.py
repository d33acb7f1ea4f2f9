"""Losses of proximal policy optimization (PPO), Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

The reward of a token is the penalty on its distance from the reference, and the last kept token of a response gets
the score of the whole response on top (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593). Tensors are of shape
(n, t): position j of a row belongs to one token, and the mask says which positions hold kept tokens of the response.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from stages.losses.kl_penalty import KLPenalty

AddUp: TypeAlias = Callable[[Tensor], Tensor]

_EPSILON = 1e-8
"""Keeps a variance of 0 from dividing by 0 when values are whitened."""


class TokenRewards(NamedTuple):
    """Rewards of n responses, token by token; all of shape (n, t)."""

    rewards: Tensor
    """Penalty and, at the last kept token, the score."""
    non_score_rewards: Tensor
    """The penalty alone."""
    kls: Tensor
    """Distance from the reference, before it is multiplied by its coefficient."""


class Advantages(NamedTuple):
    """What a batch is trained on; all of shape (n, t), and 0 where the mask is."""

    values: Tensor
    """Values of the kept tokens."""
    advantages: Tensor
    """How much better each token did than expected, whitened over the kept tokens of the batch."""
    returns: Tensor
    """What the value head is to learn: value and unwhitened advantage."""


class PPOLoss(NamedTuple):
    """The two losses of a batch, and what its statistics are made of."""

    policy: Tensor
    """Clipped loss of the policy. Shape ()."""
    value: Tensor
    """Clipped loss of the value head, before its coefficient. Shape ()."""
    ratios: Tensor
    """How much likelier each token is now than when it was sampled; detached. Shape (n, t)."""
    policy_clip_share: Tensor
    """Share of the kept tokens whose policy loss is the clipped one; detached. Shape ()."""
    value_clip_share: Tensor
    """The same of the value loss. Shape ()."""


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values that the mask keeps.

    Args:
        values: any shape.
        mask: 1 for what is kept, of the same shape.
        dim: dimension to average over; None averages over all.

    Returns:
        Shape (), or that of `values` without `dim`; nan where nothing is kept.
    """
    if dim is None:
        return (values * mask).sum() / mask.sum()
    return (values * mask).sum(dim) / mask.sum(dim)


def masked_var(values: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """Variance of the values that the mask keeps; of fewer than two, 0.

    Args:
        values: any shape.
        mask: 1 for what is kept, of the same shape.
        unbiased: whether the sum of squares is divided by one less than the number of values.

    Returns:
        Shape ().
    """
    number = mask.sum()
    mean = (values * mask).sum() / number.clamp(min=1)
    squares = ((values - mean).square() * mask).sum()
    return squares / (number - 1 if unbiased else number).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, add_up: AddUp | None = None) -> Tensor:
    """Values scaled to variance 1 over what the mask keeps, and moved to mean 0 unless told otherwise.

    Args:
        values: any shape; those that aren't kept are moved and scaled alike.
        mask: 1 for what is kept, of the same shape.
        shift_mean: whether the mean becomes 0; else it stays.
        add_up: gives the sum of a tensor over all processes, whose values are whitened together. None has one process.
    """
    over_all = add_up or _alone
    total, number = over_all(torch.stack([(values * mask).sum(), mask.sum().to(values)]))
    mean = total / number
    variance = over_all(((values - mean).square() * mask).sum()) / (number - 1).clamp(min=1)
    whitened: Tensor = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return whitened if shift_mean else whitened + mean


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of the distribution over the vocabulary at each position, in nats.

    Args:
        logits: shape (..., v).

    Returns:
        Shape (...).
    """
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def kl_penalties(logps: Tensor, reference_logps: Tensor, *, kind: KLPenalty) -> Tensor:
    """Distance of the policy from the reference at each token.

    Args:
        logps: log-probability of each token under the policy, in nats. Shape (n, t); for "full", of all tokens of
            the vocabulary, shape (n, t, v).
        reference_logps: the same under the reference.
        kind: "kl" is the difference, whose mean over samples is the divergence; "abs" its absolute value; "mse" half
            its square; "full" the divergence itself, summed over the vocabulary.

    Returns:
        Shape (n, t).

    Raises:
        ValueError: the kind is unknown, or the tensors aren't of the shape that it needs.
    """
    if kind not in get_args(KLPenalty):
        raise ValueError(f"expected kl_penalty as one of {', '.join(get_args(KLPenalty))}, found {kind!r}")
    dimensions = 3 if kind == "full" else 2
    if logps.shape != reference_logps.shape or logps.dim() != dimensions:
        raise ValueError(
            f"expected log-probabilities of one shape with {dimensions} dimensions for kl_penalty {kind!r}, found "
            f"{tuple(logps.shape)} and {tuple(reference_logps.shape)}"
        )
    difference = logps - reference_logps
    if kind == "full":
        # A token of probability 0 adds nothing, though its log-probability is minus infinity.
        return torch.where(logps.isneginf(), 0.0, logps.exp() * difference).sum(-1)
    if kind == "abs":
        return difference.abs()
    return 0.5 * difference.square() if kind == "mse" else difference


def token_rewards(scores: Tensor, kls: Tensor, mask: Tensor, *, kl_coef: float) -> TokenRewards:
    """Penalty of each token, and the score at the last kept token of each row.

    Args:
        scores: of the responses. Shape (n,).
        kls: distance from the reference. Shape (n, t).
        mask: 1 for kept tokens of the response. Shape (n, t).
        kl_coef: what the distance is multiplied by.

    Raises:
        ValueError: a row keeps no token, so that there is no place for its score.
    """
    empty = (mask.sum(-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"expected a kept token in each response, found none in row {empty[0]}; leave the row out")
    non_score_rewards = -kl_coef * kls
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * (columns + 1)).argmax(-1, keepdim=True)
    rewards = non_score_rewards.scatter_add(1, last, scores.to(non_score_rewards)[:, None])
    return TokenRewards(rewards, non_score_rewards, kls)


def compute_advantages(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    whiten_rewards: bool = False,
    add_up: AddUp | None = None,
) -> Advantages:
    """Generalized advantage estimation over the kept tokens of each row, Schulman et al. 2015, arXiv:1506.02438.

    A token that isn't kept, such as the output of a tool in the middle of a response, is stepped over: the token
    before it looks at the value of the next kept one and decays once.

    Args:
        values: expected return at each token. Shape (n, t).
        rewards: of each token. Shape (n, t).
        mask: 1 for kept tokens of the response. Shape (n, t).
        gamma: what a reward counts one token earlier.
        lam: weight of far-sighted estimates; 1 takes whole returns, 0 looks one token ahead.
        whiten_rewards: whether rewards are scaled to variance 1 first; their mean stays.
        add_up: gives the sum of a tensor over all processes, whose tokens are whitened together. None has one process.

    Raises:
        ValueError: fewer than two tokens are kept, so that advantages have no spread to be scaled by.
    """
    number = int((add_up or _alone)(mask.sum()))
    if number < 2:
        raise ValueError(
            f"expected at least two response tokens in a batch, found {number}; take longer responses or a larger batch"
        )
    keep = mask.bool()
    values = values.masked_fill(~keep, 0.0)
    rewards = rewards.masked_fill(~keep, 0.0)
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, add_up=add_up).masked_fill(~keep, 0.0)

    advantage = values.new_zeros(len(values))
    next_value = values.new_zeros(len(values))
    columns = []
    for j in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, j] + gamma * next_value - values[:, j]
        advantage = torch.where(keep[:, j], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(keep[:, j], values[:, j], next_value)
        columns.append(advantage.masked_fill(~keep[:, j], 0.0))
    advantages = torch.stack(columns[::-1], dim=1)
    whitened = masked_whiten(advantages, mask, add_up=add_up).masked_fill(~keep, 0.0)
    return Advantages(values, whitened.detach(), (advantages + values).detach())


def ppo_loss(
    logps: Tensor,
    values: Tensor,
    *,
    old_logps: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange: float,
    cliprange_value: float,
) -> PPOLoss:
    """Clipped losses of policy and value head over the kept tokens.

    With ratio r = exp(new - old), the policy's loss is max(-A r, -A clamp(r, 1 - c, 1 + c)), and that of the value
    head half of max((v - R)^2, (clamp(v, V - c', V + c') - R)^2).

    Args:
        logps: log-probability of each token under the policy as it is, in nats. Shape (n, t).
        values: of the value head as it is. Shape (n, t).
        old_logps: log-probabilities under the policy that sampled. Shape (n, t).
        old_values: V, values at that time. Shape (n, t).
        advantages: A. Shape (n, t).
        returns: R. Shape (n, t).
        mask: 1 for kept tokens of the response. Shape (n, t).
        cliprange: c, how far the ratio may go from 1 before it stops counting.
        cliprange_value: c', how far a value may go from the old one.

    Raises:
        ValueError: the tensors differ in shape.
    """
    tensors = (logps, values, old_logps, old_values, advantages, returns, mask)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected seven tensors of one shape (n, t), found {shapes}")

    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    value_losses = (values - returns).square()
    clipped_value_losses = (clipped_values - returns).square()
    value_loss = 0.5 * masked_mean(torch.max(value_losses, clipped_value_losses), mask)

    ratios = torch.exp(logps - old_logps)
    policy_losses = -advantages * ratios
    clipped_policy_losses = -advantages * torch.clamp(ratios, 1.0 - cliprange, 1.0 + cliprange)
    policy_loss = masked_mean(torch.max(policy_losses, clipped_policy_losses), mask)
    return PPOLoss(
        policy_loss,
        value_loss,
        ratios.detach(),
        masked_mean((clipped_policy_losses > policy_losses).to(logps), mask).detach(),
        masked_mean((clipped_value_losses > value_losses).to(logps), mask).detach(),
    )
