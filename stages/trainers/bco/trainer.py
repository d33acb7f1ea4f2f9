"""Binary Classifier Optimization (BCO), Jung et al. 2024, https://arxiv.org/abs/2404.04656."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor

from stages.losses.bco import bco_loss
from stages.losses.moments import ShiftKind
from stages.models.logprobs import CompletionLogps
from stages.trainers.bco.prompt_weights import PromptWeights, prompts_of
from stages.trainers.core.applied_terms import with_terms
from stages.trainers.core.arguments import TRANSFORMERS_4_55, documented
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS
from stages.trainers.core.config import PreferenceConfig
from stages.trainers.core.metrics import share_of
from stages.trainers.core.preference import PreferenceTrainer
from stages.trainers.core.reward_shift import RunningShift, ShiftUpdate
from stages.trainers.core.scored import Batch, PreferenceLoss, labelled_metrics

_ORDER = """
max_length max_prompt_length max_completion_length beta label_pad_token_id padding_value truncation_mode
disable_dropout generate_during_eval is_encoder_decoder precompute_ref_log_probs model_init_kwargs
ref_model_init_kwargs dataset_num_proc prompt_sample_size min_density_ratio max_density_ratio
"""
_DOCUMENTED = tuple(_ORDER.split())


@documented(TRANSFORMERS_4_55, _DOCUMENTED)
class BCOConfig(PreferenceConfig):
    """Arguments of `BCOTrainer`."""

    prompt_sample_size: int = 1024
    """Rows of each label that the classifier of prompts is fitted on, at most; with `embedding_func`."""
    min_density_ratio: float = 0.5
    """Lower clamp of the weight that an undesired row gets from the classifier."""
    max_density_ratio: float = 10.0
    """Upper clamp of that weight."""
    reward_shift: ShiftKind = "pooled"
    """Mean that the reward is compared with: of all rows, or of the two classes' means ("balanced")."""
    reward_shift_decay: float = 1.0
    """What older rewards count in that mean after each update, relative to before; 1 forgets nothing."""
    reward_shift_update: ShiftUpdate = "batch"
    """When the mean moves: with each micro-batch, before its loss ("batch"), or after each optimizer step ("step"),
    so that a step doesn't depend on how its rows were cut into micro-batches."""

    method_fields: ClassVar[tuple[str, ...]] = ("reward_shift", "reward_shift_decay", "reward_shift_update")

    def __post_init__(self) -> None:
        """Check the method's arguments.

        Raises:
            ValueError: one is out of range.
        """
        if self.reward_shift not in ("pooled", "balanced") or self.reward_shift_update not in ("batch", "step"):
            raise ValueError(
                'expected reward_shift as "pooled" or "balanced" and reward_shift_update as "batch" or "step", found '
                f"{self.reward_shift!r} and {self.reward_shift_update!r}"
            )
        if not 0 < self.reward_shift_decay <= 1 or not 0 <= self.min_density_ratio <= self.max_density_ratio:
            raise ValueError(
                "expected reward_shift_decay above 0 and up to 1, and density ratios from 0 with min up to max, found "
                f"{self.reward_shift_decay}, {self.min_density_ratio} and {self.max_density_ratio}"
            )
        if self.prompt_sample_size < 1:
            raise ValueError(f"expected prompt_sample_size above 0, found {self.prompt_sample_size}")
        super().__post_init__()


class BCOTrainer(PreferenceTrainer):
    """Trains a policy on thumbs up and thumbs down; the arguments of `PreferenceTrainer` and two more.

    Rows may have the columns `weight` (multiplies the row's loss), `desired_weight` and `undesired_weight` (the same,
    for the label that the row has) and `logit_offset` (added to the classifier's logit).

    Args:
        embedding_func: called with `input_ids` and `attention_mask` of prompts, gives their embeddings, shape (n, d);
            turns on underlying distribution matching (UDM). None leaves undesired rows at their weights.
        embedding_tokenizer: tokenizer of the model behind `embedding_func`.
    """

    config_class = BCOConfig
    method = "bco"
    title = "Binary Classifier Optimization (BCO)"
    paper = "https://arxiv.org/abs/2404.04656"
    extra_columns = ("prompt", "desired_weight", "undesired_weight", "logit_offset")

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: Any = None,
        ref_model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        model_init: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        compute_metrics: Any = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
        embedding_func: Callable[..., Any] | None = None,
        embedding_tokenizer: Any = None,
    ) -> None:
        self.embedding = (embedding_func, embedding_tokenizer)
        super().__init__(
            model,
            ref_model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            data_collator,
            model_init,
            callbacks,
            optimizers,
            preprocess_logits_for_metrics,
            peft_config,
            compute_metrics,
            model_adapter_name,
            ref_adapter_name,
        )

    def begin(self) -> None:
        """Make the reward shift and, with an embedding function, the weights of prompts."""
        args = self.args
        self.shift = RunningShift(args.reward_shift, decay=args.reward_shift_decay, update=args.reward_shift_update)
        self.prompt_weights = PromptWeights.given(*self.embedding, args=args)

    def preference_loss(
        self, batch: Batch, policy: CompletionLogps, reference_logps: Tensor, *, is_training: bool
    ) -> PreferenceLoss:
        """Loss and metrics of a batch; training moves the reward shift."""
        labels = batch["label"]
        if is_training:
            rewards = self.args.beta * (policy.logps.detach() - reference_logps)
            self.shift.follow(rewards, labels, self.accelerator)
        shift = self.shift.value().to(policy.logps.device)
        result = bco_loss(
            policy.logps,
            reference_logps,
            labels,
            beta=self.args.beta,
            reward_shift=shift,
            logit_offsets=batch.get("logit_offset"),
        )
        losses, added = with_terms(result.losses, policy, self.args, weights=_weights(batch), labels=labels)
        metrics = {**labelled_metrics(result.rewards, policy, labels), "delta": share_of(shift[None]), **added}
        return PreferenceLoss(losses, result.rewards, metrics)

    def reward_shift(self) -> float:
        """The running mean of the rewards."""
        return float(self.shift.value())

    def end_step(self) -> None:
        """Let the reward shift take in the step that just ended."""
        self.shift.end_step()

    def method_state(self) -> dict[str, Any]:
        """Moments of the rewards seen, and the classifier of prompts if there is one."""
        state = {"rewards": self.shift.state()}
        return state if self.prompt_weights is None else {**state, "prompts": self.prompt_weights.state()}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty state forgets the rewards."""
        self.shift.restore(state.get("rewards", {}))
        if self.prompt_weights is not None and "prompts" in state:
            self.prompt_weights.restore(state["prompts"])

    def check_rows(self, rows: Dataset, name: str) -> Dataset:
        """`rows`, with their weights if there is an embedding function.

        Raises:
            ValueError: rows to train on have one label only.
        """
        desired = sum(rows["label"])
        if name == "train_dataset" and desired in (0, len(rows)):
            raise ValueError(
                f"{name}: expected desired and undesired rows, found {desired} desired of {len(rows)}; BCO learns from "
                "their difference: collect both, or fine-tune on the desired ones alone"
            )
        if self.prompt_weights is None:
            return rows
        resumed = self.args.resume_from_checkpoint
        if name != "train_dataset" and self.prompt_weights.classifier is None and isinstance(resumed, str):
            self.restore_method_state(LOOP_CHECKPOINTS.read(Path(resumed))["method"])
        prompts = prompts_of(rows, self.tokenizer_of_rows)
        if name == "train_dataset":
            self.prompt_weights.fit(prompts, rows["label"][:], rows["row_id"][:])
        return self.prompt_weights.weigh(rows, prompts)


def _weights(batch: Batch) -> Tensor | None:
    """Weight of each row, of all that its columns say. Shape (n,); None where they say nothing."""
    weights = batch.get("weight")
    if "desired_weight" in batch or "undesired_weight" in batch:
        ones = torch.ones_like(batch["label"], dtype=torch.float32)
        by_label = batch.get("desired_weight", ones).where(batch["label"], batch.get("undesired_weight", ones))
        weights = by_label if weights is None else weights * by_label
    return weights
