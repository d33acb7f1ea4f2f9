"""Arguments of DDPO, with the names, order and defaults that are documented."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from stages.trainers.core.fields import check_fields, refuse_slip

_Share = Annotated[float, Interval(gt=0, le=1)]


@dataclasses.dataclass
class DDPOConfig:
    """Arguments of `DDPOTrainer`."""

    exp_name: str = Path(sys.argv[0]).stem
    """Name of the experiment, for trackers; by default that of the program."""
    run_name: str | None = ""
    """Name of the run, for trackers."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of new adapters, of the noise, of the orders, and of the global generators, from which prompts may be drawn;
    each process draws its own."""
    log_with: str | None = None
    """Tracker that figures go to ("tensorboard", "wandb", "dvclive" and others of accelerate); None for none."""
    tracker_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the trackers, by name of the tracker."""
    accelerator_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of `accelerate.Accelerator`."""
    project_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of `accelerate.utils.ProjectConfiguration`; checkpoints go below its `project_dir`."""
    tracker_project_name: str = "trl"
    """Name of the project, for trackers."""
    logdir: str = "logs"
    """Folder of trackers that write files, and of checkpoints where no `project_dir` is given."""
    num_epochs: PositiveInt = 100
    """Rounds of sampling, rewarding and training."""
    save_freq: PositiveInt = 1
    """Epochs between two checkpoints; the first and the last epoch are saved too."""
    num_checkpoint_limit: PositiveInt = 5
    """Checkpoints kept."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = "fp16"
    """Precision of the computation; fp16 needs an accelerator. None takes what the launcher of accelerate says, and
    without one the model's own."""
    allow_tf32: bool = True
    """Whether float32 products on an Nvidia GPU may be computed in TF32."""
    resume_from: str | None = ""
    """A checkpoint to go on from, or a folder of checkpoints, for the last one in it; empty starts anew."""
    sample_num_steps: PositiveInt = 50
    """Denoising steps of an image."""
    sample_eta: _Share = 1.0
    """Share of the noise of DDPM in each step, above 0: without noise there is nothing to learn from."""
    sample_guidance_scale: NonNegativeFloat = 5.0
    """Weight of the prompt in classifier-free guidance; up to 1 there is none."""
    sample_batch_size: PositiveInt = 1
    """Images sampled at once, on each process."""
    sample_num_batches_per_epoch: PositiveInt = 2
    """Such batches in an epoch."""
    train_batch_size: PositiveInt = 1
    """Images trained on at once, on each process."""
    train_use_8bit_adam: bool = False
    """Whether the optimizer keeps its state in 8 bits; needs the package bitsandbytes."""
    train_learning_rate: PositiveFloat = 3e-4
    """Learning rate."""
    train_adam_beta1: float = 0.9
    """Decay of the optimizer's first moment."""
    train_adam_beta2: float = 0.999
    """Decay of its second moment."""
    train_adam_weight_decay: NonNegativeFloat = 1e-4
    """Decay of the weights."""
    train_adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    train_gradient_accumulation_steps: PositiveInt = 1
    """Batches in an optimizer step, each with all of its denoising steps."""
    train_max_grad_norm: PositiveFloat = 1.0
    """Norm that gradients are clipped to."""
    train_num_inner_epochs: PositiveInt = 1
    """Passes over the images of an epoch."""
    train_cfg: bool = True
    """Whether guidance is part of the policy that is trained, as it is of the one that samples."""
    train_adv_clip_max: PositiveFloat = 5
    """Size that advantages are clamped to."""
    train_clip_range: PositiveFloat = 1e-4
    """How far the ratio of probabilities may go from 1."""
    train_timestep_fraction: _Share = 1.0
    """Share of the denoising steps of an image that are trained on, drawn anew for each image."""
    per_prompt_stat_tracking: bool = False
    """Whether an image is compared with others of its prompt, and not with all of its epoch."""
    per_prompt_stat_tracking_buffer_size: PositiveInt = 16
    """Last rewards of each prompt that are remembered."""
    per_prompt_stat_tracking_min_count: PositiveInt = 16
    """Rewards of a prompt below which its images are compared with all of the epoch."""
    async_reward_computation: bool = False
    """Whether images are rewarded in threads while further ones are sampled."""
    max_workers: PositiveInt = 2
    """Such threads."""
    negative_prompts: str | None = ""
    """What no image shall look like; None is the empty text."""

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_slip(self, name)
        super().__setattr__(name, value)

    def __post_init__(self) -> None:
        """Check what doesn't depend on the machine.

        Raises:
            ValueError: an argument is out of range, batches don't divide, or bitsandbytes is asked for and missing.
        """
        check_fields(self)
        self._check_batches()
        if self.train_use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "train_use_8bit_adam=True: expected the package bitsandbytes, found none; install it, or leave the "
                "argument out"
            )

    def _check_batches(self) -> None:
        if self.sample_batch_size % self.train_batch_size:
            raise ValueError(
                f"expected sample_batch_size as a multiple of train_batch_size, found {self.sample_batch_size} and "
                f"{self.train_batch_size}"
            )
        images = self.sample_batch_size * self.sample_num_batches_per_epoch
        step = self.train_batch_size * self.train_gradient_accumulation_steps
        if images % step:
            raise ValueError(
                "expected sample_batch_size * sample_num_batches_per_epoch as a multiple of train_batch_size * "
                f"train_gradient_accumulation_steps, found {images} and {step}, so that a last step would be "
                "smaller than others"
            )

    def to_dict(self) -> dict[str, Any]:
        """The arguments by name."""
        return dataclasses.asdict(self)
