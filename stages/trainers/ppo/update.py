"""The optimizer steps of PPO: mini-batches gathered, and taken in or not."""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor, nn

from stages.trainers.ppo.config import PPOConfig

_STOP_FACTOR = 1.5
"""Times `target_kl` that the policy may go from where it sampled."""


class OptimizerSteps:
    """Adds up the gradients of mini-batches, and steps when a backward batch is complete.

    Two things are looked at before the weights move, over the mini-batches of all processes. If all were left out,
    there is no step, for the momentum of earlier ones would move the weights. If the policy is too far from where it
    sampled and early stopping is on, there is no step and no further one until `begin`.

    Args:
        accelerator: knows the other processes.
        optimizer: of the parameters, as `accelerator` prepared it.
        parameters: what is trained.
        config: for accumulation, clipping and early stopping.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        config: PPOConfig,
    ) -> None:
        self.accelerator, self.optimizer, self.config = accelerator, optimizer, config
        self.parameters = list(parameters)
        self.begin()

    def begin(self) -> None:
        """Start a step of PPO."""
        self.is_stopped = False
        self._kls: list[Tensor] = []
        self._num_kept = 0
        self.optimizer.zero_grad()

    @property
    def next_is_last(self) -> bool:
        """Whether the next mini-batch completes a backward batch, so that processes share their gradients then."""
        return len(self._kls) + 1 == self.config.gradient_accumulation_steps

    def add(self, loss: Tensor, *, policy_kl: Tensor, is_left_out: bool) -> None:
        """Take in a mini-batch.

        Args:
            loss: its mean loss; 0 with a graph if it is left out. Shape ().
            policy_kl: how far the policy is from where it sampled, in nats per token. Shape ().
            is_left_out: whether the mini-batch is excluded from the optimizer step.

        Raises:
            ValueError: the gradient isn't finite.
        """
        self.accelerator.backward(loss / self.config.gradient_accumulation_steps)
        self._kls.append(policy_kl.detach().float())
        self._num_kept += not is_left_out
        if len(self._kls) == self.config.gradient_accumulation_steps:
            self._finish()

    def _finish(self) -> None:
        table = torch.stack([torch.stack(self._kls).mean(), self._kls[0].new_tensor(float(self._num_kept))])
        mean_kl, num_kept = self.accelerator.reduce(table, reduction="mean").tolist()
        self._kls, self._num_kept = [], 0
        if self.config.early_stopping and not mean_kl <= _STOP_FACTOR * self.config.target_kl:
            self.is_stopped = True
        elif num_kept:
            self._step()
        self.optimizer.zero_grad()

    def _step(self) -> None:
        bound = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, bound))
        # The scaler of fp16 meets infinities as a matter of course and leaves out those steps.
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            self.optimizer.zero_grad()
            raise ValueError(
                f"expected a finite gradient, found norm {norm}; the weights are as before this optimizer step: lower "
                "learning_rate, or look at the scores"
            )
        self.optimizer.step()
