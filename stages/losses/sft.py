"""Loss of supervised fine-tuning: cross-entropy of the next token."""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that isn't learned from."""


class SFTLoss(NamedTuple):
    """Loss of n rows in nats."""

    loss: Tensor
    """Mean over the tokens that are learned from, or the rows' share in a larger mean. Shape ()."""
    losses: Tensor
    """Sum over the tokens of each row, weighted. Shape (n,)."""


def sft_loss(
    logps: Tensor, num_tokens: Tensor, *, weights: Tensor | None = None, num_tokens_in_mean: Tensor | int | None = None
) -> SFTLoss:
    """Negative log-probability of the tokens that are learned from, averaged over tokens and not over rows.

    Args:
        logps: log-probability of each row's tokens, summed over those that are learned from, in nats. Shape (n,).
        num_tokens: how many those are. Shape (n,).
        weights: multiplies the loss of each row; the mean is divided by tokens, whatever they weigh. Shape (n,).
            None weighs all rows alike.
        num_tokens_in_mean: tokens that the mean goes over where these rows are a part of a step. Shape (). None takes
            those of these rows. Without any the loss is 0.

    Raises:
        ValueError: tensors that must hold one entry per row differ in shape.
    """
    rows = {"logps": logps, "num_tokens": num_tokens, **({} if weights is None else {"weights": weights})}
    if len({tensor.shape for tensor in rows.values()}) > 1:
        shapes = {name: tuple(tensor.shape) for name, tensor in rows.items()}
        raise ValueError(f"expected one entry per row in each tensor, found shapes {shapes}")
    losses = -logps if weights is None else -logps * weights
    number = num_tokens.sum() if num_tokens_in_mean is None else torch.as_tensor(num_tokens_in_mean)
    return SFTLoss(losses.sum() / number.clamp(min=1), losses)
