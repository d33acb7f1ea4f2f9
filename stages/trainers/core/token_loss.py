"""Shared by trainers of next-token prediction: a mean over tokens, in training and in evaluation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.losses.sft import IGNORED, sft_loss
from stages.models.logprobs import CompletionLogps, completion_logps
from stages.rows.label_collation import ROW_STARTS
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.metrics import Share
from stages.trainers.core.safeguards import refuse_non_finite
from stages.trainers.core.scored import OWN_SHARE, num_own_rows

_NOT_THE_MODELS = ("weight", "token_weights", ROW_STARTS)


class TokenLossTrainer(FeedbackTrainer):
    """Learns the tokens that a batch's `labels` name, each of which counts as its row and its answer weigh.

    Logits are made for these tokens alone, a chunk of them at a time. Where labels are other ids than the inputs, or
    are smoothed, the model computes its loss by itself.
    """

    # Losses are divided by the tokens of the whole step, where they are counted before it.
    loss_is_scaled_for_ga = None  # type: ignore[assignment] # the base class says that they aren't

    scores_ids = True
    """Whether labels are the ids of the inputs, or `IGNORED`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # The base class goes by the name of the model's class, and would count a token too many in each row of the
        # many that aren't called ForCausalLM, such as GPT2LMHeadModel.
        self._loss_shifts_labels = not getattr(self._policy().config, "is_encoder_decoder", False)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of an optimizer step, and how many of their tokens are learned from."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = batches[-1].pop(OWN_SHARE, None) if batches else None
        if own is not None and number is not None:
            _ignore_rows(batches[-1], len(own))
            number = self._get_num_items_in_batch(batches, device)
        return batches, number

    def _logps(self, model: nn.Module, batch: Mapping[str, Any]) -> CompletionLogps:
        """Log-probabilities of the tokens that are learned from."""
        ids = batch["input_ids"]
        positions = batch.get("position_ids")
        found = completion_logps(
            model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids) if positions is not None else batch["attention_mask"],
            completion_mask=batch["labels"] != IGNORED,
            position_ids=positions,
        )
        refuse_non_finite(batch, found.logps, step=self.state.global_step)
        if "token_weights" in batch:
            found = found._replace(logps=(found.token_logps * batch["token_weights"][:, 1:]).sum(-1))
        return found

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss of the tokens that are learned from: of the step if their number is known, else of the batch."""
        if return_outputs or not self.scores_ids:
            known = {name: value for name, value in inputs.items() if name not in _NOT_THE_MODELS}
            return super().compute_loss(model, known, return_outputs, num_items_in_batch)
        found = self._logps(model, inputs)
        result = sft_loss(
            found.logps, found.num_tokens, weights=inputs.get("weight"), num_tokens_in_mean=num_items_in_batch
        )
        loss = result.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The number is that of all processes, whose gradients are averaged.
            loss = loss * self.accelerator.num_processes
        if found.aux_loss is not None:
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self._policy().config.router_aux_loss_coef * found.aux_loss.to(loss.device) / parts
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch and, if wanted, its logits and labels."""
        inputs = self._prepare_inputs(inputs)
        if ROW_STARTS in inputs:
            _ignore_rows(inputs, num_own_rows(len(inputs[ROW_STARTS]), self.accelerator))
        logits = labels = None
        if not prediction_loss_only or not self.scores_ids:
            known = {name: value for name, value in inputs.items() if name not in _NOT_THE_MODELS}
            loss, logits, labels = super().prediction_step(model, known, prediction_loss_only, ignore_keys)
        if self.scores_ids:
            if logits is None:
                with torch.no_grad(), self.compute_loss_context_manager():
                    found = self._logps(model, inputs)
                logps, num_tokens = found.logps, found.num_tokens
            else:
                logps, num_tokens = _read_logits(logits, inputs["labels"], inputs.get("token_weights"))
                refuse_non_finite(inputs, logps, step=self.state.global_step)
            own = slice(len(logps) if ROW_STARTS in inputs else num_own_rows(len(logps), self.accelerator))
            weights = inputs["weight"][own] if "weight" in inputs else None
            result = sft_loss(logps[own], num_tokens[own], weights=weights)
            loss, share = result.loss, Share(result.losses.sum(), num_tokens[own].sum())
        else:
            is_shifted = not getattr(self._policy().config, "is_encoder_decoder", False)
            number = (inputs["labels"][:, int(is_shifted) :] != IGNORED).sum()
            # A mean over no tokens is NaN.
            share = Share((loss * number).where(number > 0, 0.0), number)
        self._eval_sums.add({"loss": share})
        return loss, logits, labels


def _ignore_rows(batch: dict[str, Any], start: int) -> None:
    """Let a batch's rows from place `start` on count for nothing, also where all are laid end to end."""
    starts = batch.get(ROW_STARTS)
    if starts is None:
        batch["labels"][start:] = IGNORED
    elif start < len(starts):
        batch["labels"][:, starts[start] :] = IGNORED


def _read_logits(logits: Any, labels: Tensor, token_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's labels but the first, and how many of them count; both of shape (n,)."""
    scores = (logits[0] if isinstance(logits, tuple) else logits)[:, :-1].float()
    counts = labels[:, 1:] != IGNORED
    targets = labels[:, 1:].clamp(min=0)
    found = scores.gather(-1, targets[..., None]).squeeze(-1) - scores.logsumexp(-1)
    found = found.masked_fill(~counts, 0.0)
    return (found if token_weights is None else found * token_weights[:, 1:]).sum(-1), counts.sum(-1)
