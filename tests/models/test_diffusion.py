"""The pipeline as a policy: what it samples, keeps, trains and saves."""

import importlib
import json
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline

from stages.contracts.extras import MissingExtraError
from stages.models.denoising import noise_logps, noise_step
from stages.models.diffusion import (
    DefaultDDPOStableDiffusionPipeline,
    attention_adapter,
    predict_guided_noise,
    predict_noise,
)
from tests.material import SHARED, needs_shared
from tests.models.tiny_diffusion import PROMPTS, save_tiny, tiny_policy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("diffusion") / "tiny")


def rollout(policy, *, guidance_scale=5.0, steps=4, seed=0):
    embeds, negative = policy.encode(PROMPTS[:2], "grey")
    generator = torch.Generator().manual_seed(seed)
    sampled = policy(
        embeds, negative, num_inference_steps=steps, guidance_scale=guidance_scale, eta=1.0, generator=generator
    )
    return sampled, embeds, negative


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_samples_what_the_pipeline_of_diffusers_samples(folder, guidance_scale):
    policy = tiny_policy(folder)

    sampled, _, _ = rollout(policy, guidance_scale=guidance_scale)
    expected = policy.sd_pipeline(
        list(PROMPTS[:2]),
        negative_prompt=["grey"] * 2,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        eta=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images

    assert torch.equal(sampled.images, expected)


def test_the_kept_log_probabilities_are_those_of_the_kept_latents(folder):
    policy = tiny_policy(folder)

    sampled, embeds, negative = rollout(policy)

    assert sampled.latents.shape == (2, 5, 4, 4, 4)
    for place, timestep in enumerate(sampled.timesteps[:-1]):
        latents, timesteps = sampled.latents[:, place], timestep.expand(2)
        policy.scheduler.set_timesteps(4)
        with torch.no_grad():
            predicted = predict_guided_noise(
                policy.unet, latents, timesteps, torch.cat([negative, embeds]), guidance_scale=5.0
            )
        step = noise_step(policy.scheduler, predicted, timesteps, latents, eta=1.0)
        torch.testing.assert_close(sampled.log_probs[:, place], noise_logps(step, sampled.latents[:, place + 1]))


def test_o1_the_log_probability_is_finite_in_every_step(folder):
    sampled, _, _ = rollout(tiny_policy(folder))

    assert sampled.log_probs.isfinite().all()
    assert sampled.log_probs[:, -1].tolist() == [0.0, 0.0]  # this schedule ends without noise


def test_guidance_of_one_is_no_guidance(folder):
    policy = tiny_policy(folder)
    embeds, negative = policy.encode(PROMPTS[:2])
    latents, timesteps = torch.randn(2, 4, 4, 4), torch.tensor([400, 10])

    with torch.no_grad():
        guided = predict_guided_noise(
            policy.unet, latents, timesteps, torch.cat([negative, embeds]), guidance_scale=1.0
        )
        plain = predict_noise(policy.unet, latents, timesteps, embeds)

    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-5)


def test_negative_prompts_change_the_images(folder):
    policy = tiny_policy(folder)
    embeds, negative = policy.encode(PROMPTS[:1], "")
    _, other = policy.encode(PROMPTS[:1], "bright")

    first, second = (
        policy(embeds, unwanted, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
        for unwanted in (negative, other)
    )

    assert not torch.equal(first, second)


def test_the_schedule_is_as_before_after_sampling(folder):
    policy = tiny_policy(folder)
    before = policy.scheduler

    rollout(policy)

    assert policy.scheduler is before
    assert policy.sd_pipeline.config["scheduler"] == ("diffusers", "DDIMScheduler")


def test_an_adapter_or_the_whole_noise_predictor_is_trained(folder):
    adapted, whole = tiny_policy(folder), tiny_policy(folder, use_lora=False)

    weights = adapted.prepare(CPU, torch.float32)

    names = [name for name, weight in adapted.unet.named_parameters() if weight.requires_grad]
    assert len(weights) == len(names) > 0
    assert all("lora" in name for name in names)
    assert len(whole.prepare(CPU, torch.float32)) == len(list(whole.unet.parameters()))
    for policy in (adapted, whole):
        assert not any(
            weight.requires_grad for part in (policy.vae, policy.text_encoder) for weight in part.parameters()
        )


def test_half_precision_holds_for_what_is_frozen_alone(folder):
    adapted, whole = tiny_policy(folder), tiny_policy(folder, use_lora=False)
    weights = adapted.prepare(CPU, torch.bfloat16) + whole.prepare(CPU, torch.bfloat16)

    assert {weight.dtype for weight in weights} == {torch.float32}
    assert next(adapted.text_encoder.parameters()).dtype == torch.bfloat16
    assert {weight.dtype for weight in adapted.unet.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_half_precision_rounds_no_weight_that_is_trained_or_saved(tmp_path, folder):
    loaded, whole = tiny_policy(folder).sd_pipeline, tiny_policy(folder, use_lora=False)

    whole.prepare(CPU, torch.bfloat16)
    whole.save_pretrained(tmp_path / "saved")

    saved = tiny_policy(tmp_path / "saved").sd_pipeline
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(loaded, name).state_dict()
        for key, weight in getattr(saved, name).state_dict().items():
            assert torch.equal(weight, expected[key]), f"{name}.{key}"
    assert next(whole.vae.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("use_lora", [True, False])
def test_what_is_saved_samples_the_same_when_diffusers_loads_it(tmp_path, folder, use_lora):
    policy = tiny_policy(folder, use_lora=use_lora, lora_config=attention_adapter(r=2, alpha=8))
    with torch.no_grad():
        for weight in policy.prepare(CPU, torch.float32):
            weight.add_(0.02)
    sampled, _, _ = rollout(policy)

    policy.save_pretrained(tmp_path / "saved")
    loaded = StableDiffusionPipeline.from_pretrained(folder if use_lora else tmp_path / "saved")
    if use_lora:
        loaded.load_lora_weights(str(tmp_path / "saved"), weight_name="pytorch_lora_weights.safetensors")
    loaded.set_progress_bar_config(disable=True)
    images = loaded(
        list(PROMPTS[:2]),
        negative_prompt=["grey"] * 2,
        num_inference_steps=4,
        guidance_scale=5.0,
        eta=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images

    torch.testing.assert_close(images, sampled.images)


def test_training_goes_on_from_an_adapter_beside_the_checkpoint(tmp_path):
    save_tiny(tmp_path / "tiny")
    first = tiny_policy(tmp_path / "tiny")
    with torch.no_grad():
        for weight in first.prepare(CPU, torch.float32):
            weight.add_(0.02)
    first.save_pretrained(tmp_path / "tiny")

    second = tiny_policy(tmp_path / "tiny", use_lora=False)

    assert second.use_lora
    found, expected = second.prepare(CPU, torch.float32), first.prepare(CPU, torch.float32)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_refuses_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="expected the folder or repository of a Stable Diffusion checkpoint"):
        tiny_policy(tmp_path)


def test_o4_stable_diffusion_xl_is_refused_by_name_before_its_weights_are_loaded(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))

    with pytest.raises(ValueError, match="found one of StableDiffusionXLPipeline"):
        tiny_policy(tmp_path)


def test_refuses_weights_that_are_no_safetensors(tmp_path):
    save_tiny(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))

    with pytest.raises(ValueError, match="weights as safetensors"):
        tiny_policy(tmp_path / "tiny")


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    import stages.trainers

    monkeypatch.setitem(sys.modules, "diffusers", None)
    for module in ("stages.models.diffusion", "stages.models.denoising", "stages.trainers.ddpo.trainer"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    assert stages.trainers.DDPOConfig().num_epochs == 100
    for name in ("DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"):
        with pytest.raises(
            MissingExtraError, match=r"expected the package diffusers.*pip install -e '\.\[diffusion\]'"
        ):
            getattr(stages.trainers, name)
    with pytest.raises(ImportError, match="diffusers"):
        importlib.import_module("stages.models.diffusion")


@needs_shared
def test_takes_a_checkpoint_that_an_older_diffusers_wrote():
    policy = DefaultDDPOStableDiffusionPipeline(SHARED / "parity" / "assets" / "tiny_sd", use_lora=False)

    embeds, negative = policy.encode(["a b c"])
    sampled = policy(embeds, negative, num_inference_steps=3, generator=torch.Generator().manual_seed(0))

    assert sampled.images.shape == (1, 3, 16, 16)
    assert sampled.log_probs.isfinite().all()
    assert (sampled.log_probs != 0).all()  # its last step adds a little noise
