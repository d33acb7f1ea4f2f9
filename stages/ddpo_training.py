"""Stage `diffusion_training`: a Stable Diffusion pipeline whose images a function rewards more, by DDPO.

    dvc repro diffusion_training

It goes on from its last checkpoint after a kill, to the same bytes.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contracts.artifact import read_table
from stages.contracts.files import write_json, write_text
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, Section, stage_main


class DiffusionLoraParams(Section):
    """An adapter of low rank that is trained in place of the noise predictor."""

    r: int = Field(4, gt=0)
    """Rank."""
    alpha: int = Field(4, gt=0)
    """Scale; the adapter's output is multiplied by alpha / r."""


class DiffusionTrainingParams(Section):
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


def run(
    *,
    base_model: Input,
    image_prompts: Input,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: DiffusionTrainingParams,
) -> None:
    """Train on prompts drawn from the training side.

    Args:
        base_model: `base_diffusion` artifact, where training starts.
        image_prompts: `image_prompts` artifact.
        model: folder to write: adapter or pipeline, in the layout of diffusers, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last rewards.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: reward, and how to train.

    Raises:
        ContractError: `image_prompts` is missing or damaged.
        ValueError: the reward leads to no function or isn't finite, batches don't divide, or a package is missing.
    """
    import random

    from stages.models.image_rewards import named_image_reward
    from stages.trainers.ddpo.config import DDPOConfig

    reward = named_image_reward(params.reward)
    config = DDPOConfig(**_arguments(params, scratch))
    rows = read_table(image_prompts, IMAGE_PROMPTS).to_pylist()
    prompts = [row["prompt"] for row in rows if row["split"] == "train"]

    from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline, attention_adapter
    from stages.models.diffusion_pointer import pipeline_folder, write_diffusion_lineage
    from stages.trainers.ddpo.trainer import DDPOTrainer

    adapter = None if params.lora is None else attention_adapter(r=params.lora.r, alpha=params.lora.alpha)
    pipeline = DefaultDDPOStableDiffusionPipeline(
        pipeline_folder(base_model), use_lora=adapter is not None, lora_config=adapter
    )
    # Drawn from the global generator, whose state checkpoints hold.
    trainer = DDPOTrainer(config, reward, lambda: (random.choice(prompts), {}), pipeline)  # noqa: S311 - no secret
    if trainer.first_epoch:
        print(f"going on from epoch {trainer.first_epoch}")
    trainer.train()

    trainer.save_pretrained(model)
    write_diffusion_lineage(model, base_model, method=trainer.method, reward=params.reward)
    curves = _curves(trainer.history)
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    means = curves["reward_mean"].dropna()
    counts = {"train": len(prompts), "test": len(rows) - len(prompts)}
    found = {
        "method": trainer.method,
        "reward_function": params.reward,
        "prompts": counts,
        "images": params.num_epochs * params.sample_batch_size * params.sample_num_batches_per_epoch,
        "epochs": params.num_epochs,
        "steps": trainer.global_step,
        "reward": {"first": means.iloc[0], "last": means.iloc[-1]},
    }
    write_json(metrics, found)
    print(f"mean reward {means.iloc[0]:.4f} in the first epoch, {means.iloc[-1]:.4f} in the last of {len(means)}")


def _arguments(params: DiffusionTrainingParams, scratch: Path) -> dict[str, Any]:
    """The section as arguments of the config."""
    from stages.models.devices import default_device
    from stages.trainers.core.tracking import tracking_folder

    has_checkpoint = any((scratch / "checkpoints").glob("checkpoint_*"))
    return {
        **params.model_dump(exclude={"start_from", "reward", "lora"}),
        "resume_from": str(scratch) if has_checkpoint else "",
        "num_checkpoint_limit": 2,
        "project_kwargs": {"project_dir": str(scratch)},
        "logdir": str(tracking_folder(scratch)),
        "tracker_project_name": "ddpo",
        "accelerator_kwargs": {"cpu": default_device().type == "cpu"},
    }


def _curves(history: list[dict[str, Any]]) -> Any:
    """Lines of the log as a table; what a line doesn't have stays empty."""
    import pandas as pd

    columns = ["step", "epoch", "inner_epoch", "reward_mean", "reward_std", "loss", "approx_kl", "clipfrac"]
    return pd.DataFrame(history, columns=columns).astype({"inner_epoch": "Int64"})


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
