"""What models made of a batch, and what a method makes of that."""

from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

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
