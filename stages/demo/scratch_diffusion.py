"""A small Stable Diffusion pipeline with random weights, built from configurations alone.

Its images show nothing, but its parts are those of a large one, so that everything that runs on it runs on that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stages.contracts.extras import missing_extra

try:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
except ModuleNotFoundError as error:
    raise missing_extra(error, extra="diffusion", purpose="Stable Diffusion") from error

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CONTRAST = 4.0
"""Factor on the last layer of the image decoder, without which random weights give plain grey."""


class DiffusionSize(NamedTuple):
    """Sizes of a pipeline from scratch."""

    latent_size: int
    """Height and width of the latents; images are four times as large."""
    channels: int
    """Channels of the noise predictor's first level; a multiple of 8."""
    hidden_size: int
    """Width of the text encoder; a multiple of 8."""


def make_pipeline(size: DiffusionSize, prompts: Sequence[str], *, seed: int) -> StableDiffusionPipeline:
    """The pipeline, on the CPU; the caller's random state is left as it was.

    Args:
        size: of its parts.
        prompts: that its text encoder must have room for.
        seed: of the weights.
    """
    tokenizer = _byte_tokenizer(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=size.hidden_size,
                intermediate_size=2 * size.hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=size.latent_size,
            layers_per_block=1,
            block_out_channels=(size.channels, 2 * size.channels),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=size.hidden_size,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            sample_size=4 * size.latent_size,
            latent_channels=4,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
        )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(_CONTRAST)
    # The last step adds no noise at all. With next to none, as checkpoints have it, its gradient would be nearly all
    # noise and drown that of the others in the few images of a demo.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # not read with this spacing, but diffusers warns of any other
        timestep_spacing="trailing",
    )
    text_encoder.train(mode=False)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _byte_tokenizer(prompts: Sequence[str]) -> CLIPTokenizer:
    """A token for each byte, within a word and at its end, so that every prompt can be read."""
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), _START, _END]
    tokenizer = CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        merges=[],
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_END,
    )
    tokenizer.model_max_length = max(len(tokenizer(prompt).input_ids) for prompt in prompts)
    return tokenizer
