"""What models made of a batch, and what a method makes of that."""

from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

from stages.losses.token_terms import humanline_clamped, length_weights, nll_losses, on_policy_weights
from stages.models.logprobs import CompletionLogps
from stages.trainers.core.metrics import Share, by_class, share_of

Batch = dict[str, Any]
OWN_SHARE = "own_share"
"""Entry of a batch that isn't full: for each row that counts, their share, relative to an equal share of all."""


class Scored(NamedTuple):
    """A batch of n rows with the log-probabilities of their sequences, one sequence's rows after the other's."""

    batch: Batch
    """Columns of the rows, and what the collator made of their ids."""
    policy: CompletionLogps
    """Under the policy."""
    reference_logps: Tensor
    """Under the reference. Shape (sequences * n,)."""

    def first(self, number: int, *, of: int) -> Self:
        """The same of the first `number` rows alone.

        Args:
            number: how many to keep.
            of: n, how many there are.
        """

        def kept(tensor: Tensor) -> Tensor:
            return torch.cat([part[:number] for part in torch.split(tensor, of)])

        per_row = ["logps", "num_tokens", "token_logps", "mean_logits"]
        per_row += ["collision_entropies"] if self.policy.collision_entropies is not None else []
        policy = self.policy._replace(**{name: kept(getattr(self.policy, name)) for name in per_row})
        batch = {name: column[:number] for name, column in self.batch.items()}
        return self._replace(batch=batch, policy=policy, reference_logps=kept(self.reference_logps))


class PreferenceLoss(NamedTuple):
    """What a method makes of a batch of b examples."""

    losses: Tensor
    """Loss of each example; the batch's loss is their mean. Shape (b,)."""
    rewards: Tensor
    """Implicit reward of each row, detached; what `compute_metrics` sees. Shape (n,), or (n, 2) of pairs."""
    metrics: dict[str, Share]
    """Parts of the means that are logged."""


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


def labelled_metrics(rewards: Tensor, policy: CompletionLogps, labels: Tensor) -> dict[str, Share]:
    """The metrics that all methods log, over desired and undesired rows."""
    return {
        **by_class("rewards", rewards, labels),
        **by_class("logps", policy.logps, labels),
        **by_class("logits", policy.mean_logits, labels),
    }


def pair_metrics(rewards: Tensor, policy: CompletionLogps) -> dict[str, Share]:
    """The same of n pairs, and the share of those whose chosen completion has the higher reward; a tie is half one.

    Args:
        rewards: of the chosen completions and then of the rejected ones. Shape (2 n,).
        policy: their log-probabilities.
    """
    chosen, rejected = rewards.chunk(2)
    is_chosen = torch.arange(len(rewards), device=rewards.device) < len(chosen)
    accuracies = (1 + (chosen - rejected).sign()) / 2
    return {**labelled_metrics(rewards, policy, is_chosen), "rewards/accuracies": share_of(accuracies)}


def loss_share(result: PreferenceLoss, extra: Tensor | None) -> Share:
    """Part that a batch has in the mean loss over all examples.

    Args:
        result: of the batch.
        extra: added to each example's loss. Shape (). None adds nothing.
    """
    number = torch.tensor(float(len(result.losses)), device=result.losses.device)
    total = result.losses.detach().sum()
    return Share(total if extra is None else total + number * extra.detach(), number)


def num_own_rows(number: int, accelerator: Accelerator) -> int:
    """How many of the first of `number` rows count: several processes fill the last batches by repeating rows."""
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return number
    return _own_part(number, int(state.remainder), accelerator)


def _own_part(number: int, left: int, accelerator: Accelerator) -> int:
    """How many of `left` rows, dealt out to the processes `number` by `number`, are this process's."""
    before_mine: int = accelerator.process_index * number
    return min(max(left - before_mine, 0), number)


def mark_own_rows(batch: Batch, number: int, accelerator: Accelerator, *, num_rows: int) -> None:
    """Say in a batch of training which of its rows count, if not all do.

    Several processes fill the last batches of an epoch up with rows that they had before; learning from those as well
    would make a step depend on the number of processes.

    Args:
        batch: the last one that a process was given.
        number: n, its rows.
        accelerator: knows the other processes.
        num_rows: rows of an epoch. The accelerator's own count of what is left is wrong in an epoch that is resumed.
    """
    processes = accelerator.num_processes
    left = num_rows % (processes * number)
    if processes > 1 and left and accelerator.gradient_state.end_of_dataloader:
        own = _own_part(number, left, accelerator)
        batch[OWN_SHARE] = [own * processes / left] * own


def own_share(batch: Batch, number: int) -> tuple[int, float]:
    """How many of the first rows of a batch count, and what their mean loss is multiplied by.

    Such that the mean over processes is that over rows.

    Args:
        batch: a batch of training, as `mark_own_rows` left it.
        number: n, its rows.
    """
    shares = batch.get(OWN_SHARE)
    if shares is None:
        return number, 1.0
    return len(shares), shares[0] if shares else 0.0


def own_rows(scored: Scored, *, of: int) -> tuple[Scored, float]:
    """The rows that count, and what their mean loss is multiplied by; see `own_share`.

    Args:
        scored: a batch of training, as `mark_own_rows` left it.
        of: n, how many rows it has.
    """
    number, share = own_share(scored.batch, of)
    return scored if number == of else scored.first(number, of=of), share
