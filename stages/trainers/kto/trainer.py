"""Kahneman-Tversky Optimization (KTO), Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn

from stages.losses.kto import check_unpaired_loss, mismatched_kl, unpaired_loss_kind, weight_range_warning
from stages.models.logprobs import CompletionLogps
from stages.models.modes import evaluating
from stages.rows.raw import MISMATCHED
from stages.trainers.core.applied_terms import with_terms
from stages.trainers.core.arguments import TRANSFORMERS_4_55, documented
from stages.trainers.core.config import PreferenceConfig
from stages.trainers.core.metrics import share_of
from stages.trainers.core.preference import PreferenceTrainer
from stages.trainers.core.scored import OWN_SHARE, Batch, PreferenceLoss, labelled_metrics, num_own_rows
from stages.trainers.kto.mismatched import with_mismatched_rows

logger = logging.getLogger(__name__)
_ORDER = """
max_length max_prompt_length max_completion_length beta loss_type desirable_weight undesirable_weight
label_pad_token_id padding_value truncation_mode generate_during_eval is_encoder_decoder disable_dropout
precompute_ref_log_probs model_init_kwargs ref_model_init_kwargs dataset_num_proc
"""
_DOCUMENTED = tuple(_ORDER.split())


@documented(TRANSFORMERS_4_55, _DOCUMENTED)
class KTOConfig(PreferenceConfig):
    """Arguments of `KTOTrainer`."""

    learning_rate: float = 1e-6
    """Learning rate after warm-up."""
    loss_type: str = "kto"
    """Name in `stages.losses.kto.UNPAIRED_LOSSES`, or "module:function" for a loss of your own."""
    desirable_weight: float = 1.0
    """What the losses of desired rows are multiplied by."""
    undesirable_weight: float = 1.0
    """What those of undesired rows are multiplied by."""

    method_fields: ClassVar[tuple[str, ...]] = ("loss_type", "desirable_weight", "undesirable_weight")

    def __post_init__(self) -> None:
        """Check the method's arguments.

        Raises:
            ValueError: there is no such loss, or a weight is below 0.
        """
        kind = unpaired_loss_kind(self.loss_type)
        check_unpaired_loss(kind, beta=self.beta)
        if self.reference_free and not kind.needs_mismatched:
            raise ValueError(
                f"expected reference_free=False, found True: loss_type {self.loss_type} compares rows with their "
                "reference alone; take kto, which compares them with mismatched rows"
            )
        if min(self.desirable_weight, self.undesirable_weight) < 0:
            raise ValueError(
                "expected desirable_weight and undesirable_weight from 0, found "
                f"{self.desirable_weight} and {self.undesirable_weight}"
            )
        super().__post_init__()


class KTOTrainer(PreferenceTrainer):
    """Trains a policy on thumbs up and thumbs down; arguments as of `PreferenceTrainer`.

    The divergence from the reference that rewards are compared with is estimated from prompts with the completion of
    another row, over all rows of an optimizer step, so that it doesn't depend on how a step is cut into batches.
    """

    config_class = KTOConfig
    method = "kto"
    title = "Kahneman-Tversky Optimization (KTO)"
    paper = "https://arxiv.org/abs/2402.01306"
    live_settings = PreferenceTrainer.live_settings | {"desirable_weight", "undesirable_weight"}

    def begin(self) -> None:
        """Find the loss, and with it whether mismatched rows are needed."""
        self.loss_kind = unpaired_loss_kind(self.args.loss_type)
        self.extra_sequences = (MISMATCHED,) if self.loss_kind.needs_mismatched else ()
        self.last_kl: Tensor | float = 0.0

    def check_rows(self, rows: Dataset, name: str) -> Dataset:
        """`rows` with the columns of the mismatched ones, if the loss needs them and they aren't there."""
        desired = sum(rows["label"])
        weights = (self.args.desirable_weight, self.args.undesirable_weight)
        warning = weight_range_warning(desired, len(rows) - desired, *weights)
        if warning and name == "train_dataset":
            logger.warning("%s: %s", name, warning)
        return with_mismatched_rows(rows, name) if self.extra_sequences else rows

    def look_ahead(self, model: nn.Module, batches: Sequence[Batch], *, is_training: bool) -> None:
        """Estimate the divergence from the mismatched rows of all `batches`, into their column `kl`."""
        if not self.extra_sequences or all("kl" in batch for batch in batches):
            return
        ratios = [self._mismatched_ratios(model, batch) for batch in batches]
        # Rows that only fill the batch of a process are no part of the estimate.
        seen = torch.cat([own[: len(batch.get(OWN_SHARE, own))] for batch, own in zip(batches, ratios, strict=True)])
        if not is_training:
            seen = seen[: num_own_rows(len(seen), self.accelerator)]
        sums = torch.stack([seen.sum(), seen.new_tensor(float(len(seen)))])
        sums = self.accelerator.reduce(sums, reduction="sum")
        mean = sums[:1] / sums[1]
        kl = mismatched_kl(mean, torch.zeros_like(mean), is_bounded=self.needs_reference)
        for batch, own in zip(batches, ratios, strict=True):
            batch["kl"] = kl.expand(len(own))
        if is_training:
            self.last_kl = kl

    def _mismatched_ratios(self, model: nn.Module, batch: Batch) -> Tensor:
        with evaluating(model), self.compute_loss_context_manager():
            policy, reference_logps = self.compared_logps(model, batch, self.extra_sequences)
        return (policy.logps - reference_logps).float()

    def preference_loss(
        self,
        batch: Batch,
        policy: CompletionLogps,
        reference_logps: Tensor,
        *,
        is_training: bool,  # noqa: ARG002 - nothing is kept between steps
    ) -> PreferenceLoss:
        """Loss and metrics of a batch."""
        labels, args = batch["label"], self.args
        kl = batch["kl"][:1].sum() if "kl" in batch else torch.zeros((), device=labels.device)
        losses = self.loss_kind.function(
            policy.logps,
            reference_logps,
            labels,
            kl,
            beta=args.beta,
            desirable_weight=args.desirable_weight,
            undesirable_weight=args.undesirable_weight,
        )
        losses, added = with_terms(losses, policy, args, weights=batch.get("weight"), labels=labels)
        rewards = args.beta * (policy.logps.detach() - reference_logps)
        metrics = {**labelled_metrics(rewards, policy, labels), "kl": share_of(kl.expand(len(labels))), **added}
        return PreferenceLoss(losses, rewards, metrics)

    def reward_shift(self) -> float:
        """Beta times the divergence that the last step was compared with."""
        return float(self.args.beta * self.last_kl)

    def method_state(self) -> dict[str, Any]:
        """The divergence in the last step."""
        return {"kl": float(self.last_kl)}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave."""
        self.last_kl = state.get("kl", 0.0)
