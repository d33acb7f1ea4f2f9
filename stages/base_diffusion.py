"""Stage `base_diffusion`: name the Stable Diffusion pipeline to improve, which is also what it is compared with.

Two sources: the folder of a checkpoint on this machine, or `scratch`, a small pipeline with random weights that runs
on a CPU in seconds, which is the demo's. The artifact is a pointer with a fingerprint; only a pipeline from scratch
lies in it.
"""

from typing import Literal

from pydantic import Field

from stages.contracts.stage import Input, Output, Section, stage_main


class ScratchDiffusionParams(Section):
    """Section `base_diffusion.scratch` of params.yaml: the demo's pipeline."""

    latent_size: int = Field(8, gt=0, multiple_of=2)
    """Height and width of the latents; images are four times as large."""
    channels: int = Field(16, gt=0, multiple_of=8)
    """Channels of the noise predictor's first level."""
    hidden_size: int = Field(32, gt=0, multiple_of=8)
    """Width of the text encoder."""


class BaseDiffusionParams(Section):
    """Section `base_diffusion` of params.yaml."""

    source: Literal["scratch", "local"] = "scratch"
    """`scratch` makes a small pipeline with room for the prompts at `inputs.base_diffusion`; `local` takes the folder
    of a Stable Diffusion checkpoint there, with weights as safetensors."""
    scratch: ScratchDiffusionParams = ScratchDiffusionParams()
    """Sizes of a pipeline from scratch."""
    seed: int = Field(0, ge=0)
    """Seed of its weights."""


def run(*, source: Input, base_diffusion: Output, params: BaseDiffusionParams) -> None:
    """Write the pointer to the pipeline, after making the pipeline if it is to come from scratch.

    Args:
        source: folder of a checkpoint (`local`), or list of prompts (`scratch`).
        base_diffusion: artifact `base_diffusion` to write.
        params: where the pipeline comes from.

    Raises:
        ValueError: there is no such checkpoint, or diffusers isn't installed.
    """
    from stages.demo.scratch_diffusion import DiffusionSize, make_pipeline
    from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline
    from stages.models.diffusion_pointer import PIPELINE_FOLDER, write_diffusion_pointer
    from stages.text.prompt_list import read_prompts

    base_diffusion.mkdir(parents=True, exist_ok=True)
    folder = source
    if params.source == "scratch":
        sizes = params.scratch
        pipeline = make_pipeline(
            DiffusionSize(sizes.latent_size, sizes.channels, sizes.hidden_size),
            read_prompts(source),
            seed=params.seed,
        )
        folder = base_diffusion / PIPELINE_FOLDER
        pipeline.save_pretrained(folder)
    pointer = write_diffusion_pointer(base_diffusion, folder)
    unet = DefaultDDPOStableDiffusionPipeline(folder).unet
    number = sum(weight.numel() for weight in unet.parameters())
    print(f"base diffusion: {params.source}, {number:,} weights, fingerprint {pointer.fingerprint[:12]}")


if __name__ == "__main__":
    stage_main(run)
