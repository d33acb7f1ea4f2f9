"""Section `training.ddpo` of params.yaml; light to import, as graphs are read with it."""

from typing import Literal

from pydantic import Field

from stages.contracts.stage import Section
from stages.trainers.core.sections import TrainingSection


class DiffusionLoraParams(Section):
    """An adapter of low rank that is trained in place of the noise predictor."""

    r: int = Field(4, gt=0)
    """Rank."""
    alpha: int = Field(4, gt=0)
    """Scale; the adapter's output is multiplied by alpha / r."""


class DiffusionTrainingParams(TrainingSection):
    """Section `training.ddpo` of params.yaml; the names are those of `DDPOConfig`."""

    start_from: str = "base_diffusion"
    """Pipeline that training starts from."""
    reward: str = "brightness"
    """Who says how good an image is: `brightness`, `jpeg_size`, `jpeg_smallness`, or `package.module:function`, a
    function like those in stages/models/image_rewards.py. DVC doesn't watch the file of your own function: after an
    edit run `dvc repro --force training@ddpo`."""
    lora: DiffusionLoraParams | None = DiffusionLoraParams()
    """The adapter to train; null trains the whole noise predictor."""
    num_epochs: int = Field(100, gt=0)
    """Rounds of sampling, rewarding and training."""
    save_freq: int = Field(10, gt=0)
    """Epochs between two checkpoints, from which a killed run goes on."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the computation; fp16 needs an accelerator."""
    sample_num_steps: int = Field(50, gt=0)
    """Denoising steps of an image."""
    sample_eta: float = Field(1.0, gt=0, le=1)
    """Share of the noise of DDPM in each step."""
    sample_guidance_scale: float = Field(5.0, ge=0)
    """Weight of the prompt in classifier-free guidance; up to 1 there is none."""
    sample_batch_size: int = Field(1, gt=0)
    """Images sampled at once."""
    sample_num_batches_per_epoch: int = Field(2, gt=0)
    """Such batches in an epoch."""
    train_batch_size: int = Field(1, gt=0)
    """Images trained on at once."""
    train_use_8bit_adam: bool = False
    """Whether the optimizer keeps its state in 8 bits; needs the package bitsandbytes."""
    train_learning_rate: float = Field(3e-4, gt=0)
    """Learning rate."""
    train_adam_weight_decay: float = Field(1e-4, ge=0)
    """Decay of the weights."""
    train_gradient_accumulation_steps: int = Field(1, gt=0)
    """Batches in an optimizer step, each with all of its denoising steps."""
    train_max_grad_norm: float = Field(1.0, gt=0)
    """Norm that gradients are clipped to."""
    train_num_inner_epochs: int = Field(1, gt=0)
    """Passes over the images of an epoch."""
    train_cfg: bool = True
    """Whether guidance is part of the policy that is trained."""
    train_adv_clip_max: float = Field(5.0, gt=0)
    """Size that advantages are clamped to."""
    train_clip_range: float = Field(1e-4, gt=0)
    """How far the ratio of probabilities may go from 1."""
    train_timestep_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the denoising steps of an image that are trained on."""
    per_prompt_stat_tracking: bool = False
    """Whether an image is compared with others of its prompt, and not with all of its epoch."""
    per_prompt_stat_tracking_buffer_size: int = Field(16, gt=0)
    """Last rewards of each prompt that are remembered."""
    per_prompt_stat_tracking_min_count: int = Field(16, gt=0)
    """Rewards of a prompt below which its images are compared with all of the epoch."""
    async_reward_computation: bool = False
    """Whether images are rewarded in threads while further ones are sampled."""
    max_workers: int = Field(2, gt=0)
    """Such threads."""
    negative_prompts: str = ""
    """What no image shall look like."""
    seed: int = Field(0, ge=0)
    """Seed of new adapters, of the prompts drawn, of the noise and of the orders."""
    log_with: Literal["tensorboard"] | None = None
    """Tracker that follows the run, below .cache/tracking; it changes no output."""
