"""Stable Diffusion as a policy: diffusers' own pipeline, sampled so that each step's log-probability is kept.

For Denoising Diffusion Policy Optimization (DDPO), Black et al. 2023, https://arxiv.org/abs/2305.13301.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.contracts.extras import missing_extra
from stages.models.denoising import RecordingScheduler

try:
    from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from diffusers.training_utils import cast_training_params
    from diffusers.utils import convert_state_dict_to_diffusers
except ModuleNotFoundError as error:
    raise missing_extra(error, extra="diffusion", purpose="Stable Diffusion") from error

_States = list[tuple[nn.Module, dict[str, Tensor]]]
LORA_FILE = "pytorch_lora_weights.safetensors"


def attention_adapter(*, r: int = 4, alpha: int = 4) -> LoraConfig:
    """An adapter of low rank on the projections of attention; its output is multiplied by alpha / r."""
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=["to_k", "to_q", "to_v", "to_out.0"],
    )


class Rollout(NamedTuple):
    """Images of n prompts and how they came about, in s steps."""

    images: Tensor
    """0 to 1; shape (n, 3, h, w)."""
    latents: Tensor
    """Before the first step and after each; shape (n, s + 1, c, h, w)."""
    log_probs: Tensor
    """Of each step, per entry of its latents, 0 where a step adds no noise; float32, shape (n, s)."""
    timesteps: Tensor
    """That each step starts from; integers, shape (s,)."""


class DefaultDDPOStableDiffusionPipeline:
    """A Stable Diffusion pipeline whose noise predictor (U-Net) is trained; everything else is frozen.

    Args:
        pretrained_model_name: folder or repository of a checkpoint; weights are read as safetensors only. LoRA weights
            that lie in the folder are loaded, and trained on.
        pretrained_model_revision: branch, tag or commit of a repository.
        use_lora: whether to train an adapter of low rank in place of the whole U-Net.
        lora_config: the adapter; None takes `attention_adapter()`.

    Raises:
        ValueError: there is no such checkpoint, it has no safetensors, or it isn't of Stable Diffusion 1 or 2.
    """

    def __init__(
        self,
        pretrained_model_name: str | Path,
        *,
        pretrained_model_revision: str = "main",
        use_lora: bool = True,
        lora_config: LoraConfig | None = None,
    ) -> None:
        self.pretrained_model = str(pretrained_model_name)
        self.pretrained_revision = pretrained_model_revision
        self.sd_pipeline = _load(self.pretrained_model, pretrained_model_revision)
        self.sd_pipeline.scheduler = DDIMScheduler.from_config(self.sd_pipeline.scheduler.config)
        self.sd_pipeline.set_progress_bar_config(disable=True)
        has_lora = (Path(self.pretrained_model) / LORA_FILE).is_file()
        self.use_lora = use_lora or has_lora
        self.lora_config = lora_config or attention_adapter()
        self._loaded: _States = []
        for frozen in (self.vae, self.text_encoder):
            frozen.requires_grad_(False)
        self.unet.requires_grad_(not self.use_lora)
        if has_lora:
            self.load_lora(self.pretrained_model)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The noise predictor."""
        return self.sd_pipeline.unet

    @property
    def vae(self) -> nn.Module:
        """What makes images of latents."""
        vae: nn.Module = self.sd_pipeline.vae
        return vae

    @property
    def text_encoder(self) -> nn.Module:
        """What makes embeddings of prompts."""
        encoder: nn.Module = self.sd_pipeline.text_encoder
        return encoder

    @property
    def scheduler(self) -> DDIMScheduler:
        """The schedule of the steps."""
        return self.sd_pipeline.scheduler

    def prepare(self, device: torch.device, dtype: torch.dtype) -> list[nn.Parameter]:
        """Move everything to `device`, what is frozen as `dtype`, and give the weights to train, which are float32.

        A new adapter is drawn from torch's global generator.
        """
        if self.use_lora and not hasattr(self.unet, "peft_config"):
            self.unet.add_adapter(self.lora_config)
        frozen = (self.vae, self.text_encoder)
        if not self.use_lora and not self._loaded:
            self._loaded = [(part, part.state_dict()) for part in frozen]
        for part in (*frozen, self.unet):
            part.to(device)
        if dtype != torch.float32:
            for part in frozen:
                part.to(dtype)
            # One by one: weights that are trained would come back rounded.
            for weight in self.unet.parameters():
                if not weight.requires_grad:
                    weight.data = weight.data.to(dtype)
        cast_training_params(self.unet, dtype=torch.float32)
        return [weight for weight in self.unet.parameters() if weight.requires_grad]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str = "") -> tuple[Tensor, Tensor]:
        """Embeddings of prompts and, for each, of what images shall not look like.

        Returns:
            Two tensors of shape (n, t, d).
        """
        negative = [negative_prompt] * len(prompts)
        embeds, negative_embeds = self.sd_pipeline.encode_prompt(
            list(prompts), self.sd_pipeline.device, 1, True, negative_prompt=negative
        )
        return embeds, negative_embeds

    def __call__(
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        eta: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Sample an image for each prompt, as the pipeline of diffusers does, and keep the steps.

        Args:
            prompt_embeds: of `encode`. Shape (n, t, d).
            negative_prompt_embeds: of `encode`; not read where there is no guidance. Shape (n, t, d).
            num_inference_steps: steps.
            guidance_scale: weight of the prompt in classifier-free guidance; up to 1 there is none.
            eta: share of the noise of DDPM, 0 to 1.
            generator: source of the noise; None is torch's global one.
        """
        with self._recording() as recorder:
            images = self.sd_pipeline(
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                generator=generator,
                output_type="pt",
            ).images
        return Rollout(
            images, torch.stack(recorder.latents, 1), torch.stack(recorder.logps, 1), recorder.timesteps.clone()
        )

    @contextmanager
    def _recording(self) -> Iterator[RecordingScheduler]:
        plain = self.sd_pipeline.scheduler
        self.sd_pipeline.scheduler = RecordingScheduler.from_config(plain.config)
        try:
            yield self.sd_pipeline.scheduler
        finally:
            self.sd_pipeline.scheduler = plain

    @contextmanager
    def _as_loaded(self) -> Iterator[None]:
        """What is frozen as it was loaded, and not rounded to half precision, for the length of a block."""
        now = [(part, part.state_dict()) for part, _ in self._loaded]
        _set_weights(self._loaded)
        try:
            yield
        finally:
            _set_weights(now)

    def load_lora(self, folder: str | Path) -> None:
        """Take up LoRA weights that `save_pretrained` wrote, to sample from or to train on."""
        self.sd_pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE, adapter_name="default")
        self.use_lora = True

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the adapter, for `load_lora_weights` of diffusers, or the whole pipeline if no adapter is trained."""
        if not self.use_lora:
            with self._as_loaded():
                self.sd_pipeline.save_pretrained(save_directory)
            return
        settings = self.unet.peft_config["default"].to_dict()
        # A set of names comes in another order in each process.
        settings["target_modules"] = sorted(settings["target_modules"])
        about = json.dumps({f"unet.{name}": value for name, value in settings.items()}, sort_keys=True)
        StableDiffusionPipeline.save_lora_weights(
            save_directory,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet)),
            # Of its own accord diffusers writes two entries about the weights, in an order that changes.
            save_function=lambda weights, path: save_file(weights, path, metadata={LORA_ADAPTER_METADATA_KEY: about}),
        )


def _set_weights(states: _States) -> None:
    for part, state in states:
        for name, weight in part.named_parameters():
            weight.data = state[name]


def predict_noise(unet: nn.Module, latents: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
    """What the noise predictor says, without guidance. Shape (n, c, h, w).

    Args:
        unet: the noise predictor, as it is or wrapped for training on several devices.
        latents: shape (n, c, h, w).
        timesteps: integers, shape (n,).
        embeds: of the prompts; shape (n, t, d).
    """
    predicted: Tensor = unet(latents, timesteps, encoder_hidden_states=embeds, return_dict=False)[0]
    return predicted


def predict_guided_noise(
    unet: nn.Module, latents: Tensor, timesteps: Tensor, embeds: Tensor, *, guidance_scale: float
) -> Tensor:
    """The same under classifier-free guidance: from the prediction without the prompt past that with it.

    Args:
        unet: the noise predictor.
        latents: shape (n, c, h, w).
        timesteps: integers, shape (n,).
        embeds: of the negative prompts, then of the prompts; shape (2n, t, d).
        guidance_scale: weight of the prompt; 1 is no guidance.
    """
    twice = predict_noise(unet, torch.cat([latents] * 2), torch.cat([timesteps] * 2), embeds)
    without, with_prompt = twice.chunk(2)
    return without + guidance_scale * (with_prompt - without)


def _load(name: str, revision: str) -> StableDiffusionPipeline:
    try:
        config: dict[str, Any] = DiffusionPipeline.load_config(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: expected the folder or repository of a Stable Diffusion checkpoint, found none "
            f"({' '.join(str(error).split())[:200]}); check the name"
        ) from None
    found = config.get("_class_name")
    if found != StableDiffusionPipeline.__name__:
        raise ValueError(
            f"{name}: expected a checkpoint of {StableDiffusionPipeline.__name__} (Stable Diffusion 1 or 2), found one "
            f"of {found}; Stable Diffusion XL and other families have other conditioning"
        )
    try:
        # Other formats of weights can run code when they are read. A filter would hide images from the reward.
        return StableDiffusionPipeline.from_pretrained(
            name, revision=revision, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: the checkpoint can't be loaded ({' '.join(str(error).split())[:300]}); it must hold all parts, "
            "with weights as safetensors"
        ) from None
