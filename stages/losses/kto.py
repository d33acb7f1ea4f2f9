"""Losses over labelled rows: Kahneman-Tversky Optimization (KTO), Ethayarajh et al. 2024, and its kin.

KTO's paper is https://arxiv.org/abs/2402.01306. The reward of a completion is compared with beta times an estimate of
the KL divergence of the policy from the reference, which `mismatched_kl` takes from prompts that are followed by the
completion of another row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stages.contracts.named_function import named_function
from stages.losses.shapes import check_labels, check_losses, check_rows

UnpairedLoss = Callable[..., Tensor]


def kto_losses(
    policy_logps: Tensor,
    reference_logps: Tensor,
    labels: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """How far each row falls short of the largest value that it could have for its reader.

    A desired row costs desirable_weight * (1 - sigmoid(beta * (ratio - kl))), an undesired one undesirable_weight *
    (1 - sigmoid(beta * (kl - ratio))), with ratio = policy - reference. The slope vanishes on either side, so rows
    whose label is beyond belief hardly move the policy.

    Args:
        policy_logps: log-probability of each completion under the policy, summed over its tokens, in nats.
            Shape (n,).
        reference_logps: the same under the reference. Shape (n,).
        labels: whether each completion is desired. Boolean, shape (n,).
        kl: estimate of the divergence of the policy from the reference, in nats, from `mismatched_kl`; z_0 in the
            paper, taken as a constant. Shape ().
        beta: scale of the reward; the larger, the closer the policy stays to the reference.
        desirable_weight: what losses of desired rows are multiplied by; lambda_D in the paper.
        undesirable_weight: the same of undesired rows; lambda_U in the paper.

    Returns:
        Loss of each row, in the order of the rows. Shape (n,).

    Raises:
        ValueError: labels aren't boolean, tensors that hold one entry per row differ in shape, or kl isn't a scalar.
    """
    check_rows({"policy_logps": policy_logps, "reference_logps": reference_logps, "labels": labels})
    check_labels(labels)
    if kl.ndim > 0:
        raise ValueError(f"expected one estimate of the KL divergence, of shape (), found shape {tuple(kl.shape)}")

    gains = beta * (policy_logps - reference_logps - kl.detach())
    # 1 - sigmoid(x) = sigmoid(-x), which doesn't round to 0 for large x.
    losses = gains.where(~labels, -gains).sigmoid()
    return (losses * desirable_weight).where(labels, losses * undesirable_weight)


def apo_zero_unpaired_losses(
    policy_logps: Tensor,
    reference_logps: Tensor,
    labels: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Anchored preference optimization on labelled rows (APO-zero): KTO's loss with its KL estimate held at 0.

    Arguments, result and errors are those of `kto_losses`; the value of kl isn't read.
    """
    return kto_losses(
        policy_logps,
        reference_logps,
        labels,
        torch.zeros_like(kl),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def mismatched_kl(policy_logps: Tensor, reference_logps: Tensor, *, is_bounded: bool = True) -> Tensor:
    """Mean log-ratio of completions that follow another row's prompt, at least 0; an estimate of a KL divergence.

    Args:
        policy_logps: log-probability of each mismatched completion under the policy, summed over its tokens, in
            nats. Shape (n,).
        reference_logps: the same under the reference. Shape (n,).
        is_bounded: whether it is held at 0 or above, as a divergence is. Without a reference, zeros stand for one under
            which all completions are alike; they leave out a constant, and so there is no bound.

    Returns:
        The estimate in nats, detached. Shape ().

    Raises:
        ValueError: there are no rows, or the tensors differ in shape.
    """
    check_rows({"policy_logps": policy_logps, "reference_logps": reference_logps})
    if not len(policy_logps):
        raise ValueError("expected mismatched rows to estimate the KL divergence from, found none")
    mean = (policy_logps - reference_logps).detach().mean()
    return mean.clamp(min=0) if is_bounded else mean


def weight_range_warning(
    num_desired: int, num_undesired: int, desirable_weight: float, undesirable_weight: float
) -> str | None:
    """What to tell a user whose weights leave the two classes out of balance; None where there is nothing to tell.

    The paper wants desirable_weight * num_desired to be 1 to 4/3 times undesirable_weight * num_undesired. One
    weight in its range, both ends rounded to two digits, is enough; so are classes of one size.
    """
    if num_desired == num_undesired:
        return None
    if not num_desired or not num_undesired:
        return (
            f"expected desired and undesired rows, found {num_desired} desired and {num_undesired} undesired; no "
            "weights balance that, collect rows of the other kind"
        )
    least = num_undesired * undesirable_weight / num_desired
    most = num_desired * desirable_weight / num_undesired
    desirable = (round(least, 2), round(least * 1.33, 2))
    undesirable = (round(most / 1.33, 2), round(most, 2))
    if desirable[0] <= desirable_weight <= desirable[1] or undesirable[0] <= undesirable_weight <= undesirable[1]:
        return None
    return (
        f"expected weights that balance {num_desired} desired and {num_undesired} undesired rows, found "
        f"desirable_weight {desirable_weight} and undesirable_weight {undesirable_weight}; set desirable_weight from "
        f"{desirable[0]} to {desirable[1]}, or undesirable_weight from {undesirable[0]} to {undesirable[1]}"
    )


class UnpairedLossKind(NamedTuple):
    """A loss over labelled rows, and what a trainer has to know of it."""

    function: UnpairedLoss
    """Called as `kto_losses` is; gives one loss per row."""
    paper: str
    """Where it comes from: a URL, or "module:function" of the user's own."""
    needs_mismatched: bool = True
    """Whether it reads the KL estimate, for which mismatched rows are passed through policy and reference."""


UNPAIRED_LOSSES: dict[str, UnpairedLossKind] = {
    "kto": UnpairedLossKind(kto_losses, "https://arxiv.org/abs/2402.01306"),
    "apo_zero_unpaired": UnpairedLossKind(
        apo_zero_unpaired_losses, "https://arxiv.org/abs/2408.06266", needs_mismatched=False
    ),
}
"""The losses over labelled rows that can be named."""


def unpaired_loss_kind(name: str) -> UnpairedLossKind:
    """The loss of this name.

    Args:
        name: one of `UNPAIRED_LOSSES`, or "module:function" for one from outside the repository, which is taken to
            read the KL estimate.

    Raises:
        ValueError: there is no such name, module or function.
    """
    if name in UNPAIRED_LOSSES:
        return UNPAIRED_LOSSES[name]
    return UnpairedLossKind(named_function(name, where="loss_type", known=UNPAIRED_LOSSES), name)


def check_unpaired_loss(kind: UnpairedLossKind, *, beta: float) -> None:
    """Compute the losses of three made-up rows, so that what can't work is found before a model is loaded.

    Args:
        kind: the loss, of the table or of the user's own.
        beta: what it is to be set with.

    Raises:
        ValueError: it doesn't give one finite, differentiable loss per row.
    """
    policy_logps = torch.tensor([-3.0, -9.0, -20.0], requires_grad=True)
    labels = torch.tensor([True, False, True])
    losses = kind.function(
        policy_logps,
        torch.tensor([-3.5, -9.0, -19.0]),
        labels,
        torch.tensor(0.5),
        beta=beta,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    check_losses(losses, counts=(3,), name=kind.paper)
