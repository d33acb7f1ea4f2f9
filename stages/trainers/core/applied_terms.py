"""What the terms of a configuration make of log-probabilities and losses; `loss_terms` has the terms."""

from typing import Any

import torch
from torch import Tensor

from stages.losses.token_terms import humanline_clamped, length_weights, nll_losses, on_policy_weights
from stages.models.logprobs import CompletionLogps
from stages.trainers.core.metrics import Share, share_of


def compared(
    policy: CompletionLogps, reference: CompletionLogps, is_completion: Tensor, args: Any
) -> tuple[CompletionLogps, Tensor]:
    """Log-probabilities under policy and reference with their tokens clamped and weighted, where `args` ask for it.

    Args:
        policy: of n sequences; of pairs, first those of the chosen completions.
        reference: of the same sequences.
        is_completion: which positions `token_logps` is of. Shape (n, t).
        args: with the fields of `LossTerms`, perhaps those of `PairTerms`.

    Returns:
        The policy's with other `logps`, and those of the reference. Shape (n,).
    """
    ours, theirs = policy.token_logps, reference.token_logps
    if args.humanline:
        ours = humanline_clamped(ours, theirs, low=args.log_epsilon_p, high=args.log_epsilon_r)
    if getattr(args, "ld_alpha", None) is not None:
        weights = length_weights(is_completion, alpha=args.ld_alpha)
        ours, theirs = ours * weights, theirs * weights
    return policy._replace(logps=ours.sum(-1)), theirs.sum(-1)


def with_terms(
    losses: Tensor,
    policy: CompletionLogps,
    args: Any,
    *,
    weights: Tensor | None,
    labels: Tensor | None = None,
) -> tuple[Tensor, dict[str, Share]]:
    """Losses with what `args` add to those of any method, and the metrics of that.

    Args:
        losses: of b labelled rows or pairs; of pairs perhaps one per completion. Shape (b,) or (2 b,).
        policy: of the b rows, or of the chosen and then the rejected completions of the b pairs.
        args: with the fields of `LossTerms`.
        weights: what the loss of each row or pair is multiplied by. Shape (b,). None weighs all alike.
        labels: whether each row is desired. Boolean, shape (b,). None: they are pairs.
    """
    metrics: dict[str, Share] = {}
    factors = [] if weights is None else [weights]
    if args.rpo_alpha is not None:
        nll = nll_losses(policy.token_logps.sum(-1), policy.num_tokens)
        nll, is_learned = (nll.chunk(2)[0], None) if labels is None else (nll.where(labels, 0.0), labels)
        losses = losses + args.rpo_alpha * _for_each(losses, nll)
        metrics["nll_loss"] = share_of(nll, is_learned)
    if policy.collision_entropies is not None:
        own = on_policy_weights(policy.token_logps.sum(-1), policy.collision_entropies, policy.num_tokens)
        own = own if labels is not None else torch.stack(own.chunk(2)).prod(0)
        factors.append(own)
        metrics["on_policy_weight"] = share_of(own)
    for factor in factors:
        losses = losses * _for_each(losses, factor)
    return losses, metrics


def _for_each(losses: Tensor, values: Tensor) -> Tensor:
    """Values of pairs, for losses of pairs or of both their completions."""
    return values.repeat(len(losses) // max(1, len(values)))
