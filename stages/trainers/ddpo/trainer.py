"""Denoising Diffusion Policy Optimization (DDPO), Black et al. 2023, https://arxiv.org/abs/2305.13301.

An epoch samples images of prompts, rewards them, and raises the probability of the denoising steps of those that were
rewarded above others. A step that adds no noise has no probability and is left out of training.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor
from tqdm import tqdm

from stages.contracts import stopping
from stages.contracts.files import write_text
from stages.losses.ddpo import clipped_losses, ddpo_loss
from stages.models.denoising import noise_logps, noise_step
from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline, predict_guided_noise, predict_noise
from stages.models.image_rewards import ImageReward, rewards_of
from stages.trainers.core.model_card import model_card
from stages.trainers.core.processes import is_asked_to_stop
from stages.trainers.core.seeding import set_seed
from stages.trainers.ddpo.advantages import PromptRewards, epoch_advantages
from stages.trainers.ddpo.config import DDPOConfig
from stages.trainers.ddpo.setup import (
    EPOCH_CHECKPOINTS,
    check_folder,
    epoch_checkpoint,
    find_random_steps,
    flat_arguments,
    keep_trainable,
    load_trainable,
    make_accelerator,
    make_optimizer,
)

PromptFunction = Callable[[], tuple[str, Any]]
"""Gives a prompt and anything about it. Checkpoints hold the states of the global generators that it may draw from."""
ImageHook = Callable[[list[list[Any]], int, Any], Any]
"""Takes, per batch, [images, prompts, prompt metadata, rewards, reward metadata], then the global step and the tracker,
None if there is none."""

_CARD_SETTINGS = (
    "train_learning_rate",
    "num_epochs",
    "sample_num_steps",
    "sample_eta",
    "sample_guidance_scale",
    "sample_batch_size",
    "sample_num_batches_per_epoch",
    "train_batch_size",
    "train_num_inner_epochs",
    "train_clip_range",
    "train_timestep_fraction",
    "per_prompt_stat_tracking",
    "negative_prompts",
    "seed",
)


class Experience(NamedTuple):
    """Denoising steps of n images, the s of each that add noise."""

    latents: Tensor
    """Before each step. Shape (n, s, c, h, w)."""
    next_latents: Tensor
    """After it. Shape (n, s, c, h, w)."""
    log_probs: Tensor
    """When it was sampled. Shape (n, s)."""
    embeds: Tensor
    """Of the prompts. Shape (n, t, d)."""
    negative_embeds: Tensor
    """Of the negative prompts. Shape (n, t, d)."""
    advantages: Tensor
    """Of the images. Shape (n,)."""


class DDPOTrainer:
    """Trains the noise predictor of Stable Diffusion towards images that a function rewards.

    Args:
        config: how to sample and train.
        reward_function: says how good images are; see `ImageReward`.
        prompt_function: draws a prompt; see `PromptFunction`.
        sd_pipeline: the model.
        image_samples_hook: is called in each epoch with the images; see `ImageHook`.

    Raises:
        ValueError: the machine lacks what the config asks for, there is no checkpoint where one is named, or the folder
            holds checkpoints of another run.
    """

    method = "ddpo"
    title = "Denoising Diffusion Policy Optimization (DDPO)"
    paper = "https://arxiv.org/abs/2305.13301"

    def __init__(
        self,
        config: DDPOConfig,
        reward_function: ImageReward,
        prompt_function: PromptFunction,
        sd_pipeline: DefaultDDPOStableDiffusionPipeline,
        image_samples_hook: ImageHook | None = None,
    ) -> None:
        # What was set since it was made is checked as at construction.
        config.__post_init__()
        self.config = config
        self.reward_fn = reward_function
        self.prompt_fn = prompt_function
        self.sd_pipeline = sd_pipeline
        self.image_samples_callback = image_samples_hook
        project = {"project_dir": config.logdir, "logging_dir": config.logdir, **config.project_kwargs}
        self.checkpoints = Path(project["project_dir"]) / "checkpoints"
        checkpoint = epoch_checkpoint(Path(config.resume_from)) if config.resume_from else None
        state: dict[str, Any] = {"epoch": -1, "global_step": 0, "history": [], "prompt_rewards": {}}
        state = state if checkpoint is None else EPOCH_CHECKPOINTS.read(checkpoint)
        check_folder(self.checkpoints, last_epoch=state["epoch"])
        self.first_epoch: int = state["epoch"] + 1
        self.global_step: int = state["global_step"]
        self.history: list[dict[str, Any]] = state["history"]
        """What was logged, a line per optimizer step and one per epoch."""
        self.prompt_rewards = PromptRewards(
            config.per_prompt_stat_tracking_buffer_size,
            config.per_prompt_stat_tracking_min_count,
            state["prompt_rewards"],
        )
        self.random_steps = find_random_steps(sd_pipeline, config)
        self.num_train_timesteps = max(1, int(len(self.random_steps) * config.train_timestep_fraction))
        self.accelerator = make_accelerator(config, project)
        self._prepare_model(checkpoint)
        if config.log_with:
            self.accelerator.init_trackers(
                config.tracker_project_name, config=flat_arguments(config), init_kwargs=config.tracker_kwargs
            )

    def _prepare_model(self, checkpoint: Path | None) -> None:
        accelerator, config = self.accelerator, self.config
        set_seed(config.seed + accelerator.process_index)
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
        weights = self.sd_pipeline.prepare(accelerator.device, dtype)
        self.unet, self.optimizer = accelerator.prepare(self.sd_pipeline.unet, make_optimizer(weights, config))
        accelerator.register_save_state_pre_hook(keep_trainable)
        accelerator.register_load_state_pre_hook(load_trainable)
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))

    def train(self, epochs: int | None = None) -> None:
        """Train up to epoch `epochs`, counted from the very first one; None takes `num_epochs`."""
        last = (self.config.num_epochs if epochs is None else epochs) - 1
        bar = tqdm(
            range(self.first_epoch, last + 1), desc="epochs", unit="epoch", disable=not self.accelerator.is_main_process
        )
        for epoch in bar:
            self.step(epoch, self.global_step)
            is_leaving = is_asked_to_stop(self.accelerator)
            if (epoch == last or is_leaving) and epoch % self.config.save_freq:
                self._save(epoch)
            if is_leaving:
                stopping.leave(f"epoch {epoch}")
            bar.set_postfix(reward=f"{self._last_reward():.4g}")

    def step(self, epoch: int, global_step: int) -> int:
        """Sample, reward and train once; logs, calls the image hook, and saves every `save_freq` epochs.

        Args:
            epoch: number of the epoch, which decides the noise and the orders.
            global_step: optimizer steps before it.

        Returns:
            Optimizer steps after it.

        Raises:
            ValueError: a reward isn't finite, there isn't one for each image, or the gradient isn't finite.
        """
        generator = self._generator(epoch)
        experience, image_data, rewards = self._collect(generator)
        self._log({"epoch": epoch, "reward_mean": rewards.mean(), "reward_std": rewards.std()}, global_step)
        if self.image_samples_callback is not None:
            trackers = self.accelerator.trackers
            self.image_samples_callback(image_data, global_step, trackers[0] if trackers else None)
        for inner_epoch in range(self.config.train_num_inner_epochs):
            global_step = self._train_inner_epoch(experience, generator, epoch, inner_epoch, global_step)
        self.first_epoch, self.global_step = epoch + 1, global_step
        if epoch % self.config.save_freq == 0:
            self._save(epoch)
        return global_step

    def _generator(self, epoch: int) -> torch.Generator:
        # Of the CPU, so that an epoch has the same noise on every device, whatever was drawn before it.
        seeds = np.random.SeedSequence([self.config.seed, self.accelerator.process_index, epoch])
        return torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))

    def _collect(self, generator: torch.Generator) -> tuple[Experience, list[list[Any]], np.ndarray]:
        """Steps of this process's images, what the image hook is given, and the rewards of all processes."""
        config = self.config
        self.unet.eval()
        image_data: list[list[Any]] = []
        pending, parts = [], []
        with ThreadPoolExecutor(config.max_workers) as threads:
            for _ in self._bar(range(config.sample_num_batches_per_epoch), "sampling"):
                asked = [self.prompt_fn() for _ in range(config.sample_batch_size)]
                prompts, metadata = tuple(prompt for prompt, _ in asked), tuple(about for _, about in asked)
                embeds, negative_embeds = self.sd_pipeline.encode(prompts, config.negative_prompts or "")
                rollout = self.sd_pipeline(
                    embeds,
                    negative_embeds,
                    num_inference_steps=config.sample_num_steps,
                    guidance_scale=config.sample_guidance_scale,
                    eta=config.sample_eta,
                    generator=generator,
                )
                image_data.append([rollout.images, prompts, metadata])
                if config.async_reward_computation:
                    pending.append(threads.submit(self.reward_fn, *image_data[-1]))
                steps = self.random_steps
                latents, after = rollout.latents[:, steps], rollout.latents[:, steps + 1]
                parts.append((latents, after, rollout.log_probs[:, steps], embeds, negative_embeds))
            results = [job.result() for job in pending] or [self.reward_fn(*data) for data in image_data]
        for data, result in zip(image_data, results, strict=True):
            data.extend(rewards_of(result, prompts=data[1]))
        prompts = tuple(prompt for data in image_data for prompt in data[1])
        advantages, rewards = self._advantages(prompts, torch.cat([data[3] for data in image_data]))
        latents, next_latents, log_probs, embeds, negative_embeds = (
            torch.cat(part) for part in zip(*parts, strict=True)
        )
        experience = Experience(latents, next_latents, log_probs, embeds, negative_embeds, advantages)
        return experience, image_data, rewards

    def _advantages(self, prompts: tuple[str, ...], rewards: Tensor) -> tuple[Tensor, np.ndarray]:
        """Advantages of this process's images, and the rewards of all processes."""
        everything = self.accelerator.gather(rewards.to(self.accelerator.device)).cpu().double().numpy()
        if self.config.per_prompt_stat_tracking:
            advantages = self.prompt_rewards.advantages(gather_object(list(prompts)), everything)
        else:
            advantages = epoch_advantages(everything)
        own = advantages.reshape(self.accelerator.num_processes, -1)[self.accelerator.process_index]
        return torch.tensor(own, dtype=torch.float32, device=self.accelerator.device), everything

    def _train_inner_epoch(
        self, experience: Experience, generator: torch.Generator, epoch: int, inner_epoch: int, global_step: int
    ) -> int:
        """One pass over the images, each with its own order of steps."""
        accelerator, config = self.accelerator, self.config
        # Set here because accelerate shares it among all trainers of a process.
        accelerator.gradient_accumulation_steps = config.train_gradient_accumulation_steps * self.num_train_timesteps
        # An image hook may have sampled by another schedule.
        self.sd_pipeline.scheduler.set_timesteps(config.sample_num_steps)
        number, num_steps = experience.log_probs.shape
        order = torch.randperm(number, generator=generator)
        columns = torch.stack([torch.randperm(num_steps, generator=generator) for _ in range(number)])
        figures: list[Tensor] = []
        self.unet.train()
        for rows in self._bar(torch.split(order, config.train_batch_size), "training"):
            for column in columns[rows, : self.num_train_timesteps].unbind(1):
                with accelerator.accumulate(self.unet):
                    loss, approx_kl, clipfrac = self._step_loss(experience, rows, column)
                    accelerator.backward(loss)
                    figures.append(torch.stack([loss.detach(), approx_kl, clipfrac]))
                    if accelerator.sync_gradients:
                        self._clip_gradients(global_step)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if accelerator.sync_gradients:
                    global_step += 1
                    means = accelerator.reduce(torch.stack(figures).mean(0), reduction="mean").tolist()
                    where = {"epoch": epoch, "inner_epoch": inner_epoch}
                    self._log(
                        {**dict(zip(("loss", "approx_kl", "clipfrac"), means, strict=True)), **where}, global_step
                    )
                    figures = []
        return global_step

    def _step_loss(self, experience: Experience, rows: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one step of each of the images `rows`."""
        embeds = experience.embeds[rows]
        if self.config.train_cfg:
            embeds = torch.cat([experience.negative_embeds[rows], embeds])
        return self.calculate_loss(
            experience.latents[rows, column],
            self.sd_pipeline.scheduler.timesteps[self.random_steps[column]],
            experience.next_latents[rows, column],
            experience.log_probs[rows, column],
            experience.advantages[rows],
            embeds,
        )

    def calculate_loss(  # noqa: PLR0917 - the documented order
        self,
        latents: Tensor,
        timesteps: Tensor,
        next_latents: Tensor,
        log_probs: Tensor,
        advantages: Tensor,
        embeds: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of one denoising step of each image, with its approximate KL and the share of clipped ratios.

        Args:
            latents: before the step. Shape (n, c, h, w).
            timesteps: that the steps start from. Integers, shape (n,).
            next_latents: after it. Shape (n, c, h, w).
            log_probs: of the steps when they were sampled. Shape (n,).
            advantages: of the images. Shape (n,).
            embeds: of the prompts, shape (n, t, d); with `train_cfg` of the negative prompts and then of the prompts,
                shape (2n, t, d).

        Raises:
            ValueError: a step adds no noise, or tensors differ in their number of rows.
        """
        config = self.config
        timesteps = timesteps.to(latents.device)
        with self.accelerator.autocast():
            if not config.train_cfg:
                predicted = predict_noise(self.unet, latents, timesteps, embeds)
            elif config.sample_guidance_scale > 1:
                predicted = predict_guided_noise(
                    self.unet, latents, timesteps, embeds, guidance_scale=config.sample_guidance_scale
                )
            else:  # up to 1 nothing was guided when it was sampled
                predicted = predict_noise(self.unet, latents, timesteps, embeds.chunk(2)[1])
        step = noise_step(self.sd_pipeline.scheduler, predicted, timesteps, latents, eta=config.sample_eta)
        result = ddpo_loss(
            noise_logps(step, next_latents),
            log_probs,
            advantages,
            clip_range=config.train_clip_range,
            advantage_clip=config.train_adv_clip_max,
        )
        return result.losses.mean(), result.approx_kl.mean(), result.is_clipped.float().mean()

    def loss(self, advantages: Tensor, clip_range: float, ratio: Tensor) -> Tensor:
        """Mean of the clipped losses; shape ().

        Args:
            advantages: shape (n,).
            clip_range: how far a ratio may go from 1.
            ratio: of the probabilities of each step now and when it was sampled. Shape (n,).
        """
        return clipped_losses(advantages, ratio, clip_range=clip_range).mean()

    def _clip_gradients(self, global_step: int) -> None:
        norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.config.train_max_grad_norm)
        # With fp16 the scaler leaves out steps whose gradients overflow, and scales less from then on.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise ValueError(
                f"step {global_step + 1}: expected a finite gradient, found norm {float(norm)}; the weights are as "
                "before this step: lower train_learning_rate"
            )

    def _bar(self, work: Any, name: str) -> Any:
        return tqdm(work, desc=name, unit="batch", leave=False, disable=not self.accelerator.is_main_process)

    def _log(self, values: Mapping[str, Any], global_step: int) -> None:
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        self.history.append({"step": global_step, **numbers})
        self.accelerator.log(numbers, step=global_step)

    def _last_reward(self) -> float:
        rewards = [line["reward_mean"] for line in self.history if "reward_mean" in line]
        return float(rewards[-1])

    def _save(self, epoch: int) -> None:
        state = {
            "epoch": epoch,
            "global_step": self.global_step,
            "history": self.history,
            "prompt_rewards": self.prompt_rewards.state(),
        }
        limit = self.accelerator.project_configuration.total_limit or self.config.num_checkpoint_limit
        checkpoint = EPOCH_CHECKPOINTS.path(self.checkpoints, epoch)
        EPOCH_CHECKPOINTS.save(self.accelerator, checkpoint, state)
        EPOCH_CHECKPOINTS.keep_last(self.accelerator, checkpoint, limit=limit)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the trained weights, in the layout of diffusers, and a model card."""
        if self.accelerator.is_main_process:
            self.sd_pipeline.save_pretrained(save_directory)
            self.create_model_card(str(save_directory), None)

    def create_model_card(self, path: str, model_name: str | None = "TRL DDPO Model") -> None:
        """Write README.md.

        Args:
            path: folder to write it to.
            model_name: its heading; None takes the method's.
        """
        name = self.sd_pipeline.pretrained_model
        card = model_card(
            method=self.method,
            title=self.title,
            paper=self.paper,
            # A folder of this machine says nothing to others.
            base_model=None if Path(name).exists() else name,
            settings={setting: getattr(self.config, setting) for setting in _CARD_SETTINGS},
            is_adapter=self.sd_pipeline.use_lora,
            name=model_name,
            library="diffusers",
            pipeline_tag="text-to-image",
        )
        write_text(Path(path) / "README.md", card)
