"""Direct Preference Optimization (DPO), Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, and its kin."""

import dataclasses
import logging
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stages.losses.dpo import PairLossKind, check_pair_loss, pair_loss_kind, unread_settings
from stages.losses.pairs import PairLogps, PairSettings
from stages.models.logprobs import CompletionLogps
from stages.rows.raw import PAIR
from stages.trainers.core.applied_terms import with_terms
from stages.trainers.core.arguments import TRANSFORMERS_4_55, documented
from stages.trainers.core.config import PreferenceConfig
from stages.trainers.core.loss_terms import PairTerms, live_terms
from stages.trainers.core.preference import PreferenceTrainer
from stages.trainers.core.reward_shift import RunningShift
from stages.trainers.core.scored import Batch, PreferenceLoss, pair_metrics
from stages.trainers.dpo import documented_methods

logger = logging.getLogger(__name__)
_SETTINGS = ("beta", "label_smoothing", "ipo_averages", "simpo_gamma", "cpo_alpha", "discopop_tau", "detach_kl")
_DIVERGENCE = ("f_divergence_type", "f_alpha_divergence_coef")


@documented(TRANSFORMERS_4_55)
class DPOConfig(PairTerms, PreferenceConfig):
    """Arguments of `DPOTrainer`; the settings of the losses are described in `stages.losses.pairs.PairSettings`."""

    learning_rate: float = 1e-6
    """Learning rate after warm-up."""
    loss_type: str | list[str] = "sigmoid"
    """Name in `stages.losses.dpo.PAIR_LOSSES`, or "module:function" for a loss of your own; or a list of such names,
    whose losses are added up by `loss_weights`."""
    label_smoothing: float = 0.0
    ipo_averages: bool = True
    simpo_gamma: float = 0.5
    cpo_alpha: float = 1.0
    discopop_tau: float = 0.05
    detach_kl: bool = True
    model_adapter_name: str | None = None
    """Adapter that is trained, where the policy has several."""
    ref_adapter_name: str | None = None
    """Adapter that is the reference."""

    method_fields: ClassVar[tuple[str, ...]] = ("loss_type", *_SETTINGS[1:])

    def __post_init__(self) -> None:
        """Check the method's arguments.

        Raises:
            ValueError: there is no such loss, it refuses its settings, or it can't honour a term.
        """
        kind, settings = self.loss_kind(), self.loss_settings()
        check_pair_loss(kind, settings)
        for term in live_terms(self):
            if not all(part.needs_reference for part in kind.parts or [kind]) and term != "sync_ref_model":
                raise ValueError(
                    f"expected {term} with losses of log-ratios alone, found loss_type {self.loss_type}, which reads "
                    "the policy by itself; in place of sft take rpo_alpha, which adds the same term"
                )
            if not kind.needs_reference:
                raise ValueError(
                    f"expected {term} with a loss that reads a reference, found loss_type {self.loss_type}"
                )
        for name in unread_settings(kind, settings):
            logger.warning("%s=%s has no effect: loss_type %s doesn't read it", name, getattr(self, name), kind.paper)
        super().__post_init__()

    def loss_settings(self) -> PairSettings:
        """The settings of the loss."""
        return PairSettings(**{name: getattr(self, name) for name in (*_SETTINGS, *_DIVERGENCE)})

    def loss_kind(self) -> PairLossKind:
        """The loss, of one name or several."""
        return pair_loss_kind(self.loss_type, self.loss_weights)


class DPOTrainer(PreferenceTrainer):
    """Trains a policy on pairs of a chosen and a rejected completion.

    Takes the arguments that TRL 0.7.10 documents. Those of them that describe the loss, lengths and the reference
    are fields of `DPOConfig`, which today's code gives as `args`; `tokenizer` may be given as `processing_class`.
    The others are those of `PreferenceTrainer`. `max_target_length` is `max_completion_length`. With plain
    `TrainingArguments`, max_length None stands for 512 and max_prompt_length None for 128, as documented.

    Raises:
        ValueError: an argument and `args` contradict each other; otherwise as in `PreferenceTrainer`.
    """

    config_class = DPOConfig
    method = "dpo"
    title = "Direct Preference Optimization (DPO)"
    paper = "https://arxiv.org/abs/2305.18290"
    sequences = PAIR
    live_settings = PreferenceTrainer.live_settings | {*_SETTINGS}

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: Any = None,
        ref_model: Any = None,
        beta: float = 0.1,
        label_smoothing: float = 0,
        loss_type: str = "sigmoid",
        args: Any = None,
        data_collator: Any = None,
        label_pad_token_id: int = -100,
        padding_value: int = 0,
        truncation_mode: str = "keep_end",
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        max_target_length: int | None = None,
        peft_config: Any = None,
        is_encoder_decoder: bool | None = None,
        disable_dropout: bool = True,
        generate_during_eval: bool = False,
        compute_metrics: Any = None,
        precompute_ref_log_probs: bool = False,
        model_init_kwargs: dict[str, Any] | None = None,
        ref_model_init_kwargs: dict[str, Any] | None = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
        processing_class: Any = None,
    ) -> None:
        super().__init__(**documented_methods.arguments_of(type(self), locals()))

    def begin(self) -> None:
        """Find the loss and its settings, and with it whether a reference is needed."""
        self.loss_kind = self.args.loss_kind()
        self.needs_reference = self.loss_kind.needs_reference
        self.shift = RunningShift("pooled", decay=1.0, update="batch")

    @property
    def loss_settings(self) -> PairSettings:
        """The settings of the loss, as they stand now."""
        settings: PairSettings = self.args.loss_settings()
        return settings

    def preference_loss(
        self, batch: Batch, policy: CompletionLogps, reference_logps: Tensor, *, is_training: bool
    ) -> PreferenceLoss:
        """Loss and metrics of a batch."""
        rewards = self.args.beta * (policy.logps.detach() - reference_logps)
        if self.loss_kind.follows_rewards and is_training:
            is_chosen = torch.arange(len(rewards), device=rewards.device) < len(rewards) // 2
            self.shift.follow(rewards, is_chosen, self.accelerator)
        losses = self.pair_losses(
            PairLogps(*policy.logps.chunk(2), *reference_logps.chunk(2), *policy.num_tokens.chunk(2))
        )
        losses, added = with_terms(losses, policy, self.args, weights=batch.get("weight"))
        metrics = {**pair_metrics(rewards, policy), **added}
        return PreferenceLoss(losses, torch.stack(rewards.chunk(2), dim=1), metrics)

    def pair_losses(self, logps: PairLogps) -> Tensor:
        """Losses of n pairs. Shape (n,), or (2 n,) for a loss per completion."""
        settings = self.loss_settings
        if self.loss_kind.follows_rewards:
            shift = self.shift.value().to(logps.policy_chosen.device)
            settings = dataclasses.replace(settings, reward_shift=shift)
        losses: Tensor = self.loss_kind.function(logps, settings)
        return losses

    def method_state(self) -> dict[str, Any]:
        """Moments of the rewards seen, for a loss that compares with their mean."""
        return {"rewards": self.shift.state()} if self.loss_kind.follows_rewards else {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty state forgets the rewards."""
        self.shift.restore(state.get("rewards", {}))

    # ---- documented methods ----

    concatenated_inputs = staticmethod(documented_methods.concatenated_inputs)
    get_batch_logps = staticmethod(documented_methods.get_batch_logps)

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
        """Ids, masks and labels of a raw pair; see `documented_methods.tokenize_row`."""
        return documented_methods.tokenize_row(self, feature, model)

    def build_tokenized_answer(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """Ids of a prompt and an answer; see `documented_methods.build_tokenized_answer`."""
        return documented_methods.build_tokenized_answer(self, prompt, answer)

    def concatenated_forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities and logits of both completions; see `documented_methods.concatenated_forward`."""
        return documented_methods.concatenated_forward(self, model, batch)

    def dpo_loss(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        reference_free: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and rewards of n pairs; see `documented_methods.dpo_loss`."""
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        return documented_methods.dpo_loss(self, *logps, reference_free=reference_free)

    def get_batch_loss_metrics(
        self, model: nn.Module, batch: Batch, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and metrics of a batch; see `documented_methods.get_batch_loss_metrics`."""
        return documented_methods.get_batch_loss_metrics(self, model, batch, train_eval)

    def get_batch_samples(self, model: Any, batch: Any, device: Any = None) -> Any:
        """Answers of policy and reference to a batch's prompts; or, asked for a number, what transformers means."""
        if isinstance(batch, int):
            return super().get_batch_samples(model, batch, device)
        return documented_methods.get_batch_samples(self, model, batch)

    def compute_reference_log_probs(self, padded_batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected completions under the reference; each of shape (n,)."""
        chosen, rejected = self.reference_logps_of(self._prepare_inputs(padded_batch)).chunk(2)
        return chosen, rejected

    def null_ref_context(self) -> AbstractContextManager[Any]:
        """A context in which the policy is the reference, where it is the policy without its adapter."""
        return documented_methods.null_ref_context(self)
