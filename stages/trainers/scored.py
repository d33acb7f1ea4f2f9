"""What models made of a batch, and what a method makes of that."""

from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

from stages.models.logprobs import CompletionLogps
from stages.trainers.metrics import Share, by_class

Batch = dict[str, Any]


class Scored(NamedTuple):
    """A batch with the log-probabilities of its n rows."""

    batch: Batch
    """Columns of the rows, and what the collator made of their ids."""
    policy: CompletionLogps
    """Under the policy."""
    reference_logps: Tensor
    """Under the reference. Shape (n,)."""

    def first(self, number: int) -> Self:
        """The same of the first rows alone."""
        policy = CompletionLogps(
            self.policy.logps[:number],
            self.policy.num_tokens[:number],
            self.policy.token_logps[:number],
            self.policy.mean_logits[:number],
            self.policy.aux_loss,
        )
        batch = {name: column[:number] for name, column in self.batch.items()}
        return self._replace(batch=batch, policy=policy, reference_logps=self.reference_logps[:number])


class PreferenceLoss(NamedTuple):
    """What a method makes of a batch of b examples."""

    losses: Tensor
    """Loss of each example; the batch's loss is their mean. Shape (b,)."""
    rewards: Tensor
    """Implicit reward of each example, detached; what `compute_metrics` sees. Shape (b,)."""
    metrics: dict[str, Share]
    """Parts of the means that are logged."""


def labelled_metrics(rewards: Tensor, policy: CompletionLogps, labels: Tensor) -> dict[str, Share]:
    """The metrics that all methods log, over desired and undesired rows."""
    return {
        **by_class("rewards", rewards, labels),
        **by_class("logps", policy.logps, labels),
        **by_class("logits", policy.mean_logits, labels),
    }


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
    before_mine: int = accelerator.process_index * number
    return min(max(int(state.remainder) - before_mine, 0), number)
