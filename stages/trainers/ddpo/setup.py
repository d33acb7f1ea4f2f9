"""What a DDPO trainer needs before its first step: the machine, the optimizer, and what a checkpoint holds."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from accelerate.tracking import filter_trackers  # type: ignore[import-untyped] # as above
from accelerate.utils import ProjectConfiguration  # type: ignore[import-untyped] # as above
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from stages.models.denoising import step_deviations
from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline
from stages.trainers.core.checkpoints import Checkpoints
from stages.trainers.ddpo.config import DDPOConfig

EPOCH_CHECKPOINTS = Checkpoints("DDPO", "checkpoint_", "epoch_state.json")


def epoch_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the last one in the folder `path` or in its folder `checkpoints`.

    Raises:
        ValueError: there is none.
    """
    for folder in (path, path / "checkpoints"):
        found = folder if EPOCH_CHECKPOINTS.is_whole(folder) else EPOCH_CHECKPOINTS.last_whole(folder)
        if found is not None:
            return found
    raise ValueError(f"resume_from: expected a checkpoint or a folder of checkpoints at {path}, found none")


def check_folder(folder: Path, *, last_epoch: int) -> None:
    """Raise if `folder` holds whole checkpoints of epochs that a run is yet to come to.

    Args:
        folder: of the checkpoints.
        last_epoch: the epoch that the run goes on from; -1 if it starts anew.

    Raises:
        ValueError: it does; they would be taken for this run's.
    """
    # One that was damaged is passed over, and written anew once the run comes to its epoch.
    numbered = EPOCH_CHECKPOINTS.numbered(folder).items()
    later = [path.name for epoch, path in numbered if epoch > last_epoch and EPOCH_CHECKPOINTS.is_whole(path)]
    if later:
        raise ValueError(
            f"{folder}: expected no checkpoint after epoch {last_epoch}, found {later[-1]} of an earlier run; set "
            "resume_from to it to go on, or choose another folder"
        )


def find_random_steps(pipeline: DefaultDDPOStableDiffusionPipeline, config: DDPOConfig) -> Tensor:
    """Places in the schedule of the steps that add noise; integers, shape (s,).

    Raises:
        ValueError: the schedule has none, or can't have so many steps.
    """
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(config.sample_num_steps)
    deviations = step_deviations(scheduler, scheduler.timesteps, eta=config.sample_eta)
    found: Tensor = (deviations > 0).nonzero().flatten()
    if not len(found):
        raise ValueError(
            f"expected denoising steps that add noise, found none among {config.sample_num_steps}; raise "
            "sample_num_steps"
        )
    return found


def make_accelerator(config: DDPOConfig, project: Mapping[str, Any]) -> Accelerator:
    """What runs the training on this machine's devices.

    Args:
        config: precision, trackers and further arguments.
        project: arguments of `ProjectConfiguration`.

    Raises:
        ValueError: the machine lacks an accelerator or a tracker that is asked for, or an argument is given twice.
    """
    own = {"log_with", "mixed_precision", "project_config"}
    if taken := sorted(own & config.accelerator_kwargs.keys()):
        raise ValueError(f"accelerator_kwargs: expected no {', '.join(taken)}; other arguments of DDPOConfig set them")
    device = torch.accelerator.current_accelerator(check_available=True)
    if config.mixed_precision == "fp16" and (device is None or config.accelerator_kwargs.get("cpu")):
        raise ValueError('mixed_precision="fp16": expected an accelerator, found a CPU; use mixed_precision="no"')
    if config.allow_tf32 and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
    settings = ProjectConfiguration(**project)
    # Checkpoints are named for their epochs here, and written whole or not at all.
    settings.automatic_checkpoint_naming = False
    if config.log_with and not filter_trackers(config.log_with, settings.logging_dir):
        raise ValueError(
            f"log_with={config.log_with!r}: expected a tracker that is installed, found it isn't; install it"
        )
    return Accelerator(
        log_with=config.log_with,
        mixed_precision=config.mixed_precision,
        project_config=settings,
        **config.accelerator_kwargs,
    )


def make_optimizer(weights: list[nn.Parameter], config: DDPOConfig) -> torch.optim.Optimizer:
    """AdamW over `weights`, with its state in 8 bits if that is asked for."""
    kind: Any = AdamW
    if config.train_use_8bit_adam:
        # An optional package; the config has looked for it.
        kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
    optimizer: torch.optim.Optimizer = kind(
        weights,
        lr=config.train_learning_rate,
        betas=(config.train_adam_beta1, config.train_adam_beta2),
        weight_decay=config.train_adam_weight_decay,
        eps=config.train_adam_epsilon,
    )
    return optimizer


def keep_trainable(models: list[nn.Module], weights: list[dict[str, Tensor]], _: str) -> None:
    """Leave frozen weights out of a checkpoint."""
    for model, state in zip(models, weights, strict=True):
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                state.pop(name)


def load_trainable(models: list[nn.Module], folder: str) -> None:
    """Load what `keep_trainable` left into each model, and leave accelerate none to load.

    Several processes wrap the model, and the names in their checkpoints; it is loaded into any number of them.
    """
    while models:
        model = models.pop()
        model = model.module if isinstance(model, DistributedDataParallel) else model
        saved = load_file(Path(folder) / "model.safetensors")
        state = {name.removeprefix("module."): weight for name, weight in saved.items()}
        unknown = model.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(
                f"{folder}: expected a checkpoint of this adapter or model, found {unknown[0]}; resume with the same "
                "use_lora and lora_config"
            )


def flat_arguments(config: DDPOConfig) -> dict[str, Any]:
    """Arguments as trackers take them: numbers and texts."""
    return {
        name: value if isinstance(value, int | float | str) else str(value) for name, value in config.to_dict().items()
    }
