"""What a denoising step of DDIM adds to its latents, and how likely that was.

DDIM (Song et al. 2020, https://arxiv.org/abs/2010.02502) with eta above 0 draws the next latents from a Gaussian whose
mean the model predicts. DDPO takes each such draw for an action. The means are those of diffusers' own scheduler.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from stages.contracts.extras import missing_extra

try:
    from diffusers import DDIMScheduler
    from diffusers.utils.torch_utils import randn_tensor
except ModuleNotFoundError as error:
    raise missing_extra(error, extra="diffusion", purpose="Stable Diffusion") from error


class NoiseStep(NamedTuple):
    """The Gaussian that the next latents of n rows are drawn from."""

    mean: Tensor
    """Float32, shape (n, c, h, w)."""
    deviation: Tensor
    """Standard deviation of each row, sigma in the paper; 0 where a step adds no noise. Float32, shape (n,)."""


def step_deviations(scheduler: DDIMScheduler, timesteps: Tensor, *, eta: float) -> Tensor:
    """Standard deviation of the noise that each step adds; 0 where it adds none, as the last step of a schedule may.

    Args:
        scheduler: whose `set_timesteps` was called.
        timesteps: of the latents that steps start from. Integers, shape (n,).
        eta: share of the noise of DDPM, 0 to 1.

    Returns:
        Float32, shape (n,).
    """
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alphas = scheduler.alphas_cumprod.to(timesteps.device)
    final = scheduler.final_alpha_cumprod.to(timesteps.device)
    after = timesteps - stride
    alpha_now = alphas[timesteps]
    alpha_after = torch.where(after >= 0, alphas[after.clamp(min=0)], final)
    variances = (1 - alpha_after) / (1 - alpha_now) * (1 - alpha_now / alpha_after)
    deviations: Tensor = eta * variances.sqrt()
    return deviations


def noise_step(
    scheduler: DDIMScheduler, model_output: Tensor, timesteps: Tensor, latents: Tensor, *, eta: float
) -> NoiseStep:
    """The Gaussian that one step of each row draws from; differentiable in `model_output`.

    Args:
        scheduler: whose `set_timesteps` was called.
        model_output: what the model predicts, guidance applied. Shape (n, c, h, w).
        timesteps: of each row; they may differ. Integers, shape (n,).
        latents: that the steps start from. Shape (n, c, h, w).
        eta: share of the noise of DDPM, 0 to 1.
    """
    # In half precision the distance to the mean would be lost in rounding where a step adds little noise.
    model_output, latents = model_output.float(), latents.float()
    no_noise = latents.new_zeros(())
    mean = torch.empty_like(latents)
    for timestep in sorted(set(timesteps.tolist())):
        rows = timesteps == timestep
        # By its class, because a scheduler that records calls this here from its own `step`.
        step = DDIMScheduler.step(
            scheduler, model_output[rows], timestep, latents[rows], eta=eta, variance_noise=no_noise
        )
        mean[rows] = step.prev_sample
    return NoiseStep(mean, step_deviations(scheduler, timesteps, eta=eta))


def noise_logps(step: NoiseStep, latents: Tensor) -> Tensor:
    """Log-density of the latents that came of a step, per entry: its mean over channels and places, in nats.

    Args:
        step: the Gaussian that they were drawn from.
        latents: constants. Shape (n, c, h, w).

    Returns:
        Shape (n,).

    Raises:
        ValueError: a step adds no noise, so that it has no density.
    """
    if not (step.deviation > 0).all():
        raise ValueError(
            "expected steps that add noise, found one that adds none; leave out where step_deviations is 0, "
            "or sample with eta above 0"
        )
    gaussian = Normal(step.mean, step.deviation[:, None, None, None], validate_args=False)
    logps: Tensor = gaussian.log_prob(latents.detach().float()).flatten(1).mean(1)  # type: ignore[no-untyped-call] # torch
    return logps


class RecordingScheduler(DDIMScheduler):  # type: ignore[misc] # no types are read of diffusers
    """DDIM that keeps the latents of each step and their log-probability, from `set_timesteps` on.

    It draws what `DDIMScheduler` draws from the same generator.
    """

    latents: list[Tensor]
    """Latents before the first step and after each; each of shape (n, c, h, w)."""
    logps: list[Tensor]
    """Of each step, 0 where it adds no noise; each of shape (n,)."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a schedule of so many steps."""
        super().set_timesteps(num_inference_steps, device)
        self.latents, self.logps = [], []

    def step(  # noqa: PLR0917 - the order is that of diffusers
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = False,  # noqa: ARG002 - a pipeline says that it wants a tuple
    ) -> tuple[Tensor]:
        """Draw the next latents; the arguments are those of diffusers."""
        timesteps = timestep.to(sample.device).expand(len(sample))
        step = noise_step(self, model_output, timesteps, sample, eta=eta)
        noise = randn_tensor(model_output.shape, generator=generator, device=sample.device, dtype=model_output.dtype)
        # Rounded to their own type first: what is kept is what is scored, now and in training.
        after = (step.mean + step.deviation[:, None, None, None] * noise).to(sample.dtype)
        is_random = bool((step.deviation > 0).all())
        self.logps.append(noise_logps(step, after) if is_random else torch.zeros_like(step.deviation))
        self.latents += [after] if self.latents else [sample, after]
        return (after,)
