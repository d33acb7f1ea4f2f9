"""Stage `diffusion_evaluation`: images of held-out prompts before and after training, and what they are rewarded."""

from typing import Any

from pydantic import Field

from stages.contracts.artifact import read_table, write_table
from stages.contracts.files import write_json
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.images import IMAGES
from stages.contracts.stage import Input, Output, Section, stage_main


class DiffusionEvaluationParams(Section):
    """Section `diffusion_evaluation` of params.yaml."""

    reward: str = "brightness"
    """Who says how good an image is; the names are those of `training.ddpo.reward`. Another function than in
    training shows what was gained besides."""
    num_prompts: int = Field(64, gt=0)
    """Held-out prompts that images are drawn for, at most; the first ones of the list."""
    num_samples: int = Field(4, gt=0)
    """Images per prompt and pipeline."""
    num_steps: int = Field(50, gt=0)
    """Denoising steps of an image."""
    guidance_scale: float = Field(5.0, ge=0)
    """Weight of the prompt in classifier-free guidance; up to 1 there is none."""
    eta: float = Field(1.0, ge=0, le=1)
    """Share of the noise of DDPM in each step."""
    negative_prompt: str = ""
    """What no image shall look like."""
    batch_size: int = Field(8, gt=0)
    """Images drawn at once."""
    num_resamples: int = Field(1000, gt=0)
    """Bootstrap resamples behind each interval."""
    seed: int = Field(0, ge=0)
    """Seed of the noise and of the bootstrap."""


def run(
    *,
    base_model: Input,
    model: Input,
    image_prompts: Input,
    images: Output,
    metrics: Output,
    plots: Output,
    params: DiffusionEvaluationParams,
) -> None:
    """Draw images of held-out prompts with both pipelines and reward them.

    Args:
        base_model: `base_diffusion` artifact, where training started.
        model: folder of what was trained.
        image_prompts: `image_prompts` artifact.
        images: `images` artifact to write.
        metrics: JSON to write: mean reward of both and the gain, with intervals over prompts.
        plots: folder to write: by_prompt.csv, mean rewards of each prompt before and after.
        params: reward, sampling and seed.

    Raises:
        ContractError: `image_prompts` is missing or damaged.
        ValueError: the reward leads to no function or isn't finite, or the model was trained on another base.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from stages.measures.plots import write_plot
    from stages.measures.preference_metrics import (
        Resampling,
        SampledPrompts,
        compare_scores,
        nested,
        sampling_metrics,
    )
    from stages.models.image_comparison import ImageSampling, load_policy, load_reference, sample_images
    from stages.models.image_rewards import named_image_reward

    reward = named_image_reward(params.reward)
    rows = [row for row in read_table(image_prompts, IMAGE_PROMPTS).to_pylist() if row["split"] == "test"]
    chosen = rows[: params.num_prompts]
    prompts = [row["prompt"] for row in chosen]
    sampling = ImageSampling(
        params.num_samples,
        params.num_steps,
        params.guidance_scale,
        params.eta,
        params.negative_prompt,
        params.seed,
        params.batch_size,
    )
    # One after the other, so that memory holds one.
    ours = sample_images(load_policy(base_model, model), prompts, sampling, progress="images after")
    theirs = sample_images(load_reference(base_model), prompts, sampling, progress="images before")
    scores = [
        [_rewards(reward, prompt, group) for prompt, group in zip(prompts, side, strict=True)]
        for side in (ours, theirs)
    ]

    values = compare_scores(*scores)
    ids = [row["prompt_id"] for row in chosen]
    found = nested(
        sampling_metrics(
            SampledPrompts(np.array(ids, dtype=str), values), Resampling(params.num_resamples, params.seed)
        )
    )
    counts = {"held_out": len(rows), "sampled_prompts": len(chosen), "samples_per_prompt": params.num_samples}
    write_json(metrics, {**found, "counts": counts, "reward_function": params.reward})
    columns = {
        "prompt_id": ids,
        "prompt": prompts,
        "policy": _files(ours),
        "reference": _files(theirs),
        "policy_rewards": pa.array(scores[0], pa.list_(pa.float32())),
        "reference_rewards": pa.array(scores[1], pa.list_(pa.float32())),
    }
    write_table(images, pa.table(columns), IMAGES)
    plots.mkdir()
    means = [np.mean(side, axis=1) for side in (scores[1], scores[0])]
    by_prompt = pd.DataFrame({"prompt": prompts, "before": means[0], "after": means[1]})
    write_plot(plots / "by_prompt.csv", by_prompt)
    reward_of = found["true_reward"]
    before, after, gain = reward_of["reference"], reward_of["policy"], reward_of["gain"]
    print(
        f"{len(chosen)} held-out prompts, {params.num_samples} images of each: reward {before['value']:.4f} before, "
        f"{after['value']:.4f} after; gain {gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
    )


def _rewards(reward: Any, prompt: str, images: Any) -> list[float]:
    from stages.models.image_rewards import rewards_of

    prompts = (prompt,) * len(images)
    values: list[float] = rewards_of(reward(images, prompts, ({},) * len(images)), prompts=prompts)[0].tolist()
    return values


def _files(groups: Any) -> list[list[bytes]]:
    """Each image as the bytes of a PNG file."""
    from stages.models.image_rewards import encoded

    return [[encoded(image, "PNG") for image in group] for group in groups]


if __name__ == "__main__":
    stage_main(run)
