"""A Stable Diffusion pipeline small enough for tests, on disk."""

from functools import cache
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline

from stages.demo.scratch_diffusion import DiffusionSize, make_pipeline
from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline

PROMPTS = ("a red fox", "a blue boat", "a green house by the sea")


@cache
def _pipeline() -> StableDiffusionPipeline:
    pipeline = make_pipeline(DiffusionSize(latent_size=4, channels=8, hidden_size=8), PROMPTS, seed=0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(folder: Path, **schedule: Any) -> Path:
    """Write the pipeline, with other settings of its schedule if any are given."""
    pipeline = _pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **schedule) if schedule else _scheduler()
    pipeline.save_pretrained(folder)
    return folder


@cache
def _scheduler() -> DDIMScheduler:
    return _pipeline().scheduler


def tiny_policy(folder: Path, **arguments: Any) -> DefaultDDPOStableDiffusionPipeline:
    """The pipeline in `folder` as a policy."""
    return DefaultDDPOStableDiffusionPipeline(folder, **arguments)
