"""Images of a trained pipeline beside those of the one that it started from, drawn from the same noise."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stages.models.devices import default_device
from stages.models.diffusion import LORA_FILE, DefaultDDPOStableDiffusionPipeline
from stages.models.diffusion_pointer import pipeline_folder, read_diffusion_pointer
from stages.models.pointer import LINEAGE_FILE


class ImageSampling(NamedTuple):
    """How images are drawn."""

    num_samples: int
    """Images per prompt."""
    num_steps: int
    guidance_scale: float
    eta: float
    negative_prompt: str
    seed: int
    batch_size: int
    """Images drawn at once."""


def load_reference(base_diffusion: Path) -> DefaultDDPOStableDiffusionPipeline:
    """The pipeline that an artifact `base_diffusion` stands for."""
    return DefaultDDPOStableDiffusionPipeline(pipeline_folder(base_diffusion), use_lora=False)


def load_policy(base_diffusion: Path, model: Path) -> DefaultDDPOStableDiffusionPipeline:
    """The trained pipeline.

    Args:
        base_diffusion: artifact that training started from, which an adapter is laid on.
        model: folder that `ddpo_training` wrote.

    Raises:
        ValueError: the folder holds no trained pipeline, or one that started elsewhere.
    """
    try:
        trained_on = json.loads((model / LINEAGE_FILE).read_text(encoding="utf-8"))["base_diffusion"]
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{model}: expected what ddpo_training wrote, found none; run it again") from None
    if trained_on != read_diffusion_pointer(base_diffusion).fingerprint:
        raise ValueError(f"{model}: it was trained on another pipeline than {base_diffusion}; train it again")
    if not (model / LORA_FILE).is_file():
        return DefaultDDPOStableDiffusionPipeline(model, use_lora=False)
    pipeline = load_reference(base_diffusion)
    pipeline.load_lora(model)
    return pipeline


@torch.no_grad()
def sample_images(
    pipeline: DefaultDDPOStableDiffusionPipeline, prompts: list[str], sampling: ImageSampling, *, progress: str
) -> Tensor:
    """Images of each prompt, 0 to 1; shape (prompts, samples, 3, h, w), on the CPU.

    The noise of an image depends on the seed, the prompt's place and the image's number alone, so two pipelines draw
    from the same.
    """
    jobs = [(place, number) for place in range(len(prompts)) for number in range(sampling.num_samples)]
    diffusion = pipeline.sd_pipeline.to(default_device())
    images = []
    with tqdm(total=len(jobs), desc=progress, unit="image", mininterval=1.0) as bar:
        for start in range(0, len(jobs), sampling.batch_size):
            batch = jobs[start : start + sampling.batch_size]
            drawn = diffusion(
                [prompts[place] for place, _ in batch],
                negative_prompt=[sampling.negative_prompt] * len(batch),
                num_inference_steps=sampling.num_steps,
                guidance_scale=sampling.guidance_scale,
                eta=sampling.eta,
                generator=[_generator(sampling.seed, *job) for job in batch],
                output_type="pt",
            )
            images.append(drawn.images.float().cpu())
            bar.update(len(batch))
    flat = torch.cat(images)
    return flat.reshape(len(prompts), sampling.num_samples, *flat.shape[1:])


def _generator(seed: int, place: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, place, number]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(state))
