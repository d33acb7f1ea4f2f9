"""Section `training.ddpo` of params.yaml; light to import, as graphs are read with it."""

from typing import Any, Literal

from pydantic import Field

from stages.contracts.stage import Section
from stages.trainers.core.fields import section_fields
from stages.trainers.core.sections import TrainingSection
from stages.trainers.ddpo.config import DDPOConfig

_OF_THE_CONFIG: Any = section_fields(
    TrainingSection,
    DDPOConfig,
    "num_epochs sample_num_steps sample_eta sample_guidance_scale sample_batch_size sample_num_batches_per_epoch "
    "train_batch_size train_use_8bit_adam train_learning_rate train_adam_weight_decay "
    "train_gradient_accumulation_steps train_max_grad_norm train_num_inner_epochs train_cfg train_adv_clip_max "
    "train_clip_range train_timestep_fraction per_prompt_stat_tracking per_prompt_stat_tracking_buffer_size "
    "per_prompt_stat_tracking_min_count async_reward_computation max_workers negative_prompts seed",
    save_freq=10,
    mixed_precision="no",
)


class DiffusionLoraParams(Section):
    """An adapter of low rank that is trained in place of the noise predictor."""

    r: int = Field(4, gt=0)
    """Rank."""
    alpha: int = Field(4, gt=0)
    """Scale; the adapter's output is multiplied by alpha / r."""


class DiffusionTrainingParams(_OF_THE_CONFIG):  # type: ignore[misc] # its fields are made above
    """Section `training.ddpo` of params.yaml; the names are those of `DDPOConfig`."""

    start_from: str = "base_diffusion"
    """Pipeline that training starts from."""
    reward: str = "brightness"
    """Who says how good an image is: `brightness`, `jpeg_size`, `jpeg_smallness`, or `package.module:function`, a
    function like those in stages/models/image_rewards.py. DVC doesn't watch the file of your own function: after an
    edit run `dvc repro --force training@ddpo`."""
    lora: DiffusionLoraParams | None = DiffusionLoraParams()
    """The adapter to train; null trains the whole noise predictor."""
    log_with: Literal["tensorboard"] | None = None
    """Tracker that follows the run, below .cache/tracking; it changes no output."""
