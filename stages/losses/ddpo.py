"""Loss of Denoising Diffusion Policy Optimization (DDPO), Black et al. 2023, https://arxiv.org/abs/2305.13301.

Each denoising step is an action of the policy, and the reward of the finished image is that of all its steps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class DDPOLoss(NamedTuple):
    """Per row, in the order of the rows given; each of shape (n,)."""

    losses: Tensor
    approx_kl: Tensor
    """Half the squared change of the log-probability; detached."""
    is_clipped: Tensor
    """Whether the ratio left its range. Boolean."""


def ddpo_loss(
    policy_logps: Tensor,
    sampled_logps: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    advantage_clip: float,
) -> DDPOLoss:
    """Clipped policy gradient of denoising steps.

    With ratio q = exp(policy - sampled) and advantage A, a step costs the larger of -A * q and
    -A * clamp(q, 1 - clip_range, 1 + clip_range): moving a ratio out of its range in the direction that the advantage
    asks for gains nothing.

    Args:
        policy_logps: log-probability of each step under the policy, per entry of its latents. Shape (n,).
        sampled_logps: the same when the step was sampled; a constant. Shape (n,).
        advantages: how much better the image of each step is than others. Shape (n,).
        clip_range: how far a ratio may go from 1.
        advantage_clip: size that advantages are clamped to.

    Raises:
        ValueError: tensors that must hold one entry per row differ in shape.
    """
    shapes = {
        "policy_logps": tuple(policy_logps.shape),
        "sampled_logps": tuple(sampled_logps.shape),
        "advantages": tuple(advantages.shape),
    }
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected one entry per row in each tensor, got shapes {shapes}")
    change = policy_logps - sampled_logps.detach()
    # With an advantage from 0 on the size of a large ratio does not matter, but 0 * inf, where it overflows, is NaN.
    largest = math.log(torch.finfo(change.dtype).max) / 2
    ratios = change.where(advantages < 0, change.clamp(max=largest)).exp()
    losses = clipped_losses(advantages.clamp(-advantage_clip, advantage_clip), ratios, clip_range=clip_range)
    return DDPOLoss(losses, 0.5 * change.detach().square(), (ratios.detach() - 1).abs() > clip_range)


def clipped_losses(advantages: Tensor, ratios: Tensor, *, clip_range: float) -> Tensor:
    """The larger of the losses with the ratio as it is and with the ratio clamped to its range.

    Args:
        advantages: shape (n,).
        ratios: of the probabilities of each step now and when it was sampled. Shape (n,).
        clip_range: how far a ratio may go from 1.
    """
    clamped = ratios.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratios, -advantages * clamped)
