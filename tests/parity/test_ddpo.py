"""DDPO against TRL 0.7.10's numbers: denoising steps with their log-probability, and the clipped loss."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from stages.losses.ddpo import clipped_losses
from stages.models.denoising import noise_logps, noise_step, step_deviations
from tests.material import SHARED, needs_shared

FOLDER = SHARED / "parity" / "out" / "ddpo"

pytestmark = needs_shared


@pytest.fixture(scope="module")
def dump():
    values = json.loads((FOLDER / "scheduler_step.json").read_text())
    return values["params"]["num_inference_steps"], values["values"], load_file(FOLDER / "scheduler_step.safetensors")


@pytest.mark.parametrize("case", range(20))
def test_a_denoising_step_has_the_same_mean_draw_log_probability_and_gradient(dump, case):
    steps, cases, tensors = dump
    settings = cases[str(case)]
    schedule = DDIMScheduler(**settings["scheduler"])
    schedule.set_timesteps(steps)
    given = {
        name: tensors[f"in/{case}/{name}"] for name in ("sample", "model_output", "timestep", "prev_sample", "noise")
    }
    output = given["model_output"].requires_grad_()
    assert schedule.timesteps.tolist() == settings["timesteps"]

    step = noise_step(schedule, output, given["timestep"], given["sample"], eta=settings["eta"])
    drawn = (step.mean + step.deviation[:, None, None, None] * given["noise"]).detach()

    torch.testing.assert_close(drawn, tensors[f"out/{case}/sampled_prev"], rtol=1e-5, atol=1e-6)
    if not settings["finite"]:  # O1: TRL's log-probability is none there
        assert (step_deviations(schedule, given["timestep"], eta=settings["eta"]) == 0).any()
        return
    found = noise_logps(step, given["prev_sample"])
    torch.testing.assert_close(found, tensors[f"out/{case}/log_probs"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noise_logps(step, drawn), tensors[f"out/{case}/sampled_log_probs"], rtol=1e-4, atol=1e-4)
    found.sum().backward()
    torch.testing.assert_close(output.grad, tensors[f"out/{case}/grad_model_output"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "clip_range"), [("loss_clip_02", 0.2), ("loss_clip_1e4", 1e-4)])
def test_the_clipped_loss_is_the_same(name, clip_range):
    tensors = load_file(FOLDER / "loss.safetensors")
    advantages = tensors["in/advantages"].clamp(-5, 5)

    found = clipped_losses(advantages, tensors["in/ratio"], clip_range=clip_range).mean()

    torch.testing.assert_close(found, tensors[f"out/{name}"], rtol=1e-5, atol=1e-6)
