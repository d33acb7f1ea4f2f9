"""Parameters that the trainings of all methods share; light to import, for stages read params.yaml with them."""

from typing import Any, Literal

from pydantic import Field

from stages.contracts.stage import Section
from stages.trainers.core.fields import section_fields
from stages.trainers.core.loss_terms import LOSS_TERMS, LossTerms


class LoraParams(Section):
    """An adapter of low rank that is trained in place of the model."""

    r: int = Field(16, gt=0)
    """Rank."""
    alpha: int = Field(32, gt=0)
    """Scale; the adapter's output is multiplied by alpha / r."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter, or all but the output head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""


class TrainingSection(Section):
    """What every section below `training` of params.yaml has."""

    method: str | None = None
    """Method that the section is of, where its name is none: a second reward model, `reward_b`, says `reward`."""
    start_from: str = "base"
    """Model that training starts from and is compared with: `base`, or the method that trained it, such as `sft`."""


class LanguageModelParams(TrainingSection):
    """How a language model is held and followed while it is trained, by whatever method."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are held in."""
    bf16: bool = False
    """Whether to compute in bfloat16."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and costs time."""
    lora: LoraParams | None = None
    """The adapter to train; null trains the whole model."""
    report_to: list[Literal["tensorboard", "dvclive"]] = Field(default_factory=list)
    """Trackers that follow the run, below .cache/tracking; they change no output."""


class OptimisationParams(LanguageModelParams):
    """How a training moves weights, whatever the loss."""

    learning_rate: float = Field(1e-6, gt=0)
    """Learning rate after warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    warmup_steps: float = Field(0, ge=0)
    """Optimizer steps of warm-up; below 1, their share of all steps."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the rows."""
    max_steps: int = -1
    """Optimizer steps; -1 takes as many as the epochs have."""
    per_device_train_batch_size: int = Field(8, gt=0)
    """Rows of a forward pass, of pairs twice as many sequences; several processes share them."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Batches in one optimizer step."""
    optim: str = "adamw_torch_fused"
    """Optimizer, by its name in transformers."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights other than biases and norms."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Norm that gradients are clipped to; 0 clips none."""
    seed: int = 42
    """Seed of the order of the rows, of dropout and of new weights."""
    disable_dropout: bool = True
    """Whether the model's dropout is off."""
    logging_steps: int = Field(10, gt=0)
    """Optimizer steps between two points of the curves."""
    save_steps: int = Field(200, ge=0)
    """Optimizer steps between two checkpoints, from which a killed run goes on; 0 writes none."""


_TERMS: Any = section_fields(OptimisationParams, LossTerms, LOSS_TERMS)


class PreferenceParams(_TERMS):  # type: ignore[misc] # its fields are made above
    """What the sections of methods share that compare a policy with its reference."""

    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward; the larger, the closer the policy stays to the reference."""
    max_start_reward: float = Field(0.1, gt=0)
    """Size that rewards may have on average before the first step, where all should be 0: policy and reference are
    the same model then, and what is left is rounding. A run with more of it ends, for it would learn from that."""
