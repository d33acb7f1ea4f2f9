"""Denoising steps against DDIM's own definition and diffusers' scheduler."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from stages.models.denoising import NoiseStep, noise_logps, noise_step, step_deviations

CHECKPOINT = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def scheduler(steps=10, **settings):
    made = DDIMScheduler(**{**CHECKPOINT, **settings})
    made.set_timesteps(steps)
    return made


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_log_density_is_the_mean_over_entries_worked_by_hand():
    # Standard deviation 2, distances 0 and 4: -(0 + 16)/(2 * 4)/2 - log 2 - log(2 pi)/2
    step = NoiseStep(torch.zeros(1, 1, 1, 2), torch.tensor([2.0]))

    found = noise_logps(step, torch.tensor([[[[0.0, 4.0]]]]))

    torch.testing.assert_close(found, torch.tensor([-1.0 - math.log(2) - 0.5 * math.log(2 * math.pi)]))


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction"}, {"clip_sample": True}])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_mean_and_deviation_are_those_that_diffusers_draws_with(settings, eta):
    schedule = scheduler(**settings)
    output, latents, noise = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), draw(3, 4, 2, 2, seed=2)

    for timestep in schedule.timesteps:
        step = noise_step(schedule, output, timestep.expand(3), latents, eta=eta)
        drawn = schedule.step(output, timestep, latents, eta=eta, variance_noise=noise).prev_sample

        torch.testing.assert_close(step.mean + step.deviation[:, None, None, None] * noise, drawn)


def test_rows_at_different_timesteps_are_as_each_alone():
    schedule = scheduler()
    output, latents = draw(4, 4, 2, 2), draw(4, 4, 2, 2, seed=1)
    timesteps = schedule.timesteps[[3, 0, 3, 9]]

    together = noise_step(schedule, output, timesteps, latents, eta=0.7)

    for row in range(4):
        one = slice(row, row + 1)
        alone = noise_step(schedule, output[one], timesteps[one], latents[one], eta=0.7)
        assert torch.equal(together.mean[one], alone.mean)
        assert torch.equal(together.deviation[one], alone.deviation)


def test_gradients_reach_what_the_model_predicts_and_not_the_latents_drawn():
    schedule = scheduler()
    output = draw(2, 4, 2, 2).requires_grad_()
    drawn = draw(2, 4, 2, 2, seed=2).requires_grad_()

    step = noise_step(schedule, output, schedule.timesteps[[0, 5]], draw(2, 4, 2, 2, seed=1), eta=1.0)
    noise_logps(step, drawn).sum().backward()

    assert output.grad.abs().min() > 0
    assert drawn.grad is None


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 10),
        ({"steps_offset": 0}, 9),
        ({"timestep_spacing": "trailing", "set_alpha_to_one": True}, 9),
        ({"timestep_spacing": "linspace"}, 9),
    ],
)
def test_o1_a_step_without_noise_is_found_whatever_the_schedule(settings, number):
    schedule = scheduler(**settings)

    deviations = step_deviations(schedule, schedule.timesteps, eta=1.0)

    assert deviations.isfinite().all()
    assert int((deviations > 0).sum()) == number


def test_o1_a_step_without_noise_has_no_density_and_says_so():
    schedule = scheduler(steps_offset=0)
    step = noise_step(schedule, draw(1, 4, 2, 2), torch.tensor([0]), draw(1, 4, 2, 2, seed=1), eta=1.0)

    with pytest.raises(ValueError, match="expected steps that add noise"):
        noise_logps(step, draw(1, 4, 2, 2))
