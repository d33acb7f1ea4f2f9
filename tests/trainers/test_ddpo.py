"""DDPO's trainer on a tiny pipeline: what it learns, logs, saves and refuses."""

import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from stages.models.image_rewards import brightness
from stages.trainers import DDPOConfig, DDPOTrainer
from stages.trainers.core.checkpoints import seal
from stages.trainers.ddpo.setup import epoch_checkpoint, make_accelerator
from tests.models.tiny_diffusion import PROMPTS, save_tiny, tiny_policy

SMALL = {
    "mixed_precision": "no",
    "num_epochs": 2,
    "sample_num_steps": 3,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 2,
    "train_learning_rate": 1e-3,
    "train_clip_range": 0.1,
    "accelerator_kwargs": {"cpu": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("diffusion") / "tiny")


def draw_prompt():
    return random.choice(PROMPTS), {"length": 3}


def made(folder, logs, *, reward=brightness, hook=None, use_lora=True, schedule=None, **arguments):
    policy = tiny_policy(folder, use_lora=use_lora)
    if schedule is not None:
        policy.sd_pipeline.scheduler = DDIMScheduler.from_config(policy.scheduler.config, **schedule)
    config = DDPOConfig(**{**SMALL, "logdir": str(logs), **arguments})
    return DDPOTrainer(config, reward, draw_prompt, policy, hook)


def trained_weights(trainer):
    return [weight.detach().clone() for weight in trainer.unet.parameters() if weight.requires_grad]


def logged(trainer, name):
    return [line[name] for line in trainer.history if name in line]


def test_rewards_leave_the_device_in_the_type_that_they_have(tmp_path, folder, monkeypatch):
    trainer = made(folder, tmp_path)
    # All that a tensor on an accelerator without doubles can be asked for.
    gathered = SimpleNamespace(cpu=lambda: torch.tensor([1.0, 3.0]))
    monkeypatch.setattr(trainer.accelerator, "gather", lambda _: gathered)

    advantages, rewards = trainer._advantages(("a", "b"), torch.tensor([1.0, 3.0]))

    assert rewards.tolist() == [1.0, 3.0]
    assert advantages.tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)


@pytest.mark.slow
def test_images_come_to_be_as_the_reward_asks(tmp_path, folder):
    def trained(sign):
        trainer = made(
            folder,
            tmp_path / str(sign),
            reward=lambda images, prompts, metadata: sign * brightness(images, prompts, metadata),
            use_lora=False,
            num_epochs=12,
            save_freq=100,
            sample_batch_size=32,
            sample_guidance_scale=1.0,
            train_batch_size=16,
            train_learning_rate=1e-2,
        )
        random.seed(0)
        trainer.train()
        rewards = logged(trainer, "reward_mean")
        return sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3, logged(trainer, "reward_std")[0]

    (first_bright, last_bright, spread), (first_dark, last_dark, _) = trained(1), trained(-1)

    assert last_bright > first_bright
    assert last_dark > first_dark
    # Of two trainings that differ in the sign of the reward, one ends far brighter.
    assert last_bright + last_dark > 2 * spread


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("train_cfg", [True, False])
def test_trains_what_it_shall_and_nothing_else(tmp_path, folder, use_lora, train_cfg):
    trainer = made(folder, tmp_path, use_lora=use_lora, train_cfg=train_cfg, num_epochs=1)
    before = {name: weight.detach().clone() for name, weight in trainer.unet.named_parameters()}

    trainer.train()

    moved = {name for name, weight in trainer.unet.named_parameters() if not torch.equal(weight, before[name])}
    trainable = {name for name, weight in trainer.unet.named_parameters() if weight.requires_grad}
    assert moved <= trainable
    assert len(moved) > len(trainable) / 2


def test_the_first_ratio_of_an_epoch_is_one(tmp_path, folder):
    trainer = made(folder, tmp_path, train_gradient_accumulation_steps=2)

    trainer.train()

    # One optimizer step an epoch, so that each step is trained on under the policy that sampled it.
    assert logged(trainer, "approx_kl") == pytest.approx([0.0, 0.0], abs=1e-9)
    assert logged(trainer, "clipfrac") == [0.0, 0.0]
    assert trainer.global_step == 2


def test_a_step_is_taken_over_all_denoising_steps_of_the_accumulated_batches(tmp_path, folder):
    trainer = made(
        folder,
        tmp_path,
        num_epochs=1,
        train_batch_size=1,
        train_gradient_accumulation_steps=2,
        train_num_inner_epochs=3,
    )

    trainer.train()

    # 4 images in batches of 1, two batches a step, three passes
    assert trainer.global_step == 6
    assert logged(trainer, "inner_epoch") == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("fraction", "number"), [(1.0, 2), (0.5, 1), (0.1, 1)])
def test_a_share_of_the_denoising_steps_is_trained_on(tmp_path, folder, fraction, number):
    trainer = made(folder, tmp_path, num_epochs=1, train_timestep_fraction=fraction)
    seen = []
    plain = trainer.calculate_loss
    trainer.calculate_loss = lambda *arguments: seen.append(arguments[1]) or plain(*arguments)

    trainer.train()

    assert trainer.num_train_timesteps == number
    assert len(seen) == 2 * number  # batches of two images


def test_calculate_loss_takes_rows_at_different_timesteps(tmp_path, folder):
    trainer = made(folder, tmp_path)
    latents, following = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    embeds, negative = trainer.sd_pipeline.encode(PROMPTS[:2])
    timesteps, advantages = trainer.sd_pipeline.scheduler.timesteps[:2], torch.tensor([1.0, -1.0])

    together = trainer.calculate_loss(
        latents, timesteps, following, torch.zeros(2), advantages, torch.cat([negative, embeds])
    )
    alone = [
        trainer.calculate_loss(
            latents[[row]],
            timesteps[[row]],
            following[[row]],
            torch.zeros(1),
            advantages[[row]],
            torch.cat([negative[[row]], embeds[[row]]]),
        )
        for row in range(2)
    ]

    for values in zip(together, *alone, strict=True):
        torch.testing.assert_close(values[0], (values[1] + values[2]) / 2, rtol=1e-4, atol=1e-5)


def test_without_guidance_the_negative_prompt_has_no_say(tmp_path, folder):
    trainer = made(folder, tmp_path, sample_guidance_scale=1.0)
    latents, following = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    embeds, negative = trainer.sd_pipeline.encode(PROMPTS[:1])
    rest = (trainer.sd_pipeline.scheduler.timesteps[:1], following, torch.zeros(1), torch.ones(1))

    first = trainer.calculate_loss(latents, *rest, torch.cat([negative, embeds]))
    second = trainer.calculate_loss(latents, *rest, torch.cat([negative + 1, embeds]))

    assert torch.equal(first[0], second[0])


def test_the_loss_is_the_mean_of_the_clipped_losses(tmp_path, folder):
    # max(-2 * 1.5, -2 * 1.2) = -2.4 and max(0.5, 0.8) = 0.8
    found = made(folder, tmp_path).loss(torch.tensor([2.0, -1.0]), 0.2, torch.tensor([1.5, 0.5]))

    assert float(found) == pytest.approx(-0.8)


@pytest.mark.parametrize("schedule", [{"timestep_spacing": "leading", "steps_offset": 0}, {}])
def test_o1_steps_without_noise_are_left_out_of_training(tmp_path, folder, schedule):
    trainer = made(folder, tmp_path, num_epochs=1, schedule=schedule)

    trainer.train()

    assert trainer.random_steps.tolist() == [0, 1]
    assert all(weight.isfinite().all() for weight in trained_weights(trainer))
    assert torch.tensor(logged(trainer, "loss")).isfinite().all()


def test_a_schedule_without_any_noise_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="expected denoising steps that add noise, found none among 1"):
        made(folder, tmp_path, sample_num_steps=1, schedule={"timestep_spacing": "leading", "steps_offset": 0})


def test_o2_rewards_in_threads_are_the_same_rewards(tmp_path, folder):
    names = set()

    def reward(images, prompts, metadata):
        names.add(threading.current_thread() is threading.main_thread())
        return brightness(images, prompts, metadata)

    trainers = [
        made(
            folder,
            tmp_path / str(is_async),
            reward=reward,
            async_reward_computation=is_async,
            sample_num_batches_per_epoch=2,
            num_epochs=1,
        )
        for is_async in (False, True)
    ]
    for trainer in trainers:
        random.seed(1)
        trainer.train()

    assert names == {True, False}
    assert trainers[0].history == trainers[1].history


def test_o3_integer_rewards_train_like_the_same_rewards_as_floats(tmp_path, folder):
    def levels(images, prompts, metadata):
        return (images.mean((1, 2, 3)) * 1000).round()

    trainers = [
        made(folder, tmp_path / name, reward=reward, num_epochs=1)
        for name, reward in (("float", levels), ("integer", lambda *given: levels(*given).int()))
    ]
    for trainer in trainers:
        random.seed(1)
        trainer.train()

    assert trainers[0].history == trainers[1].history
    assert logged(trainers[0], "reward_std")[0] > 0


def test_o4_the_first_and_the_last_epoch_are_saved(tmp_path, folder):
    trainer = made(folder, tmp_path, num_epochs=4, save_freq=2)

    trainer.train()

    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint_0",
        "checkpoint_2",
        "checkpoint_3",
    ]


def test_only_the_last_checkpoints_are_kept(tmp_path, folder):
    made(folder, tmp_path, num_epochs=3, num_checkpoint_limit=2).train()

    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint_1", "checkpoint_2"}


def test_o4_the_image_hook_works_without_a_tracker(tmp_path, folder):
    calls = []
    trainer = made(
        folder,
        tmp_path,
        hook=lambda *given: calls.append(given),
        reward=lambda images, prompts, metadata: ([1, 2, 3, 4], "why"),
        sample_num_batches_per_epoch=2,
    )

    trainer.train()

    assert [(step, tracker) for _, step, tracker in calls] == [(0, None), (4, None)]
    images, prompts, metadata, rewards, about = calls[0][0][1]
    assert images.shape == (4, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    assert set(prompts) <= set(PROMPTS)
    assert metadata == ({"length": 3},) * 4
    assert (rewards.tolist(), about) == ([1.0, 2.0, 3.0, 4.0], "why")


def test_a_hook_that_samples_by_another_schedule_changes_nothing(tmp_path, folder):
    def sample(image_data, step, tracker):
        other.sd_pipeline.scheduler.set_timesteps(7)

    plain, other = made(folder, tmp_path / "plain"), made(folder, tmp_path / "other", hook=sample)
    for trainer in (plain, other):
        random.seed(1)
        trainer.train()

    assert plain.history == other.history


def test_a_tracker_is_given_the_figures_and_the_hook(tmp_path, folder):
    trackers = []
    made(
        folder,
        tmp_path,
        log_with="tensorboard",
        tracker_project_name="images",
        num_epochs=1,
        hook=lambda images, step, tracker: trackers.append(tracker.name),
    ).train()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "images")).Reload()
    assert trackers == ["tensorboard"]
    assert {"reward_mean", "reward_std", "loss", "approx_kl", "clipfrac"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_lora": False},
        {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 3},
    ],
    ids=["adapter", "whole", "per prompt"],
)
def test_goes_on_bit_for_bit_from_a_checkpoint(tmp_path, folder, settings):
    whole = made(folder, tmp_path / "whole", num_epochs=3, **settings)
    whole.train()
    made(folder, tmp_path / "cut", num_epochs=3, **settings).train(1)
    random.seed(99)  # a new process stands elsewhere in its random streams
    torch.rand(7)

    resumed = made(folder, tmp_path / "cut", num_epochs=3, resume_from=str(tmp_path / "cut"), **settings)
    resumed.train()

    assert resumed.first_epoch == 3
    assert resumed.history == whole.history
    pairs = zip(trained_weights(resumed), trained_weights(whole), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_checkpoint_of_an_adapter_holds_the_adapter_alone(tmp_path, folder):
    made(folder, tmp_path, num_epochs=1).train()

    names = load_file(tmp_path / "checkpoints" / "checkpoint_0" / "model.safetensors")

    assert names
    assert all("lora" in name for name in names)


@pytest.mark.parametrize("use_lora", [True, False])
def test_one_process_goes_on_from_a_checkpoint_of_several(tmp_path, folder, use_lora):
    trained = made(folder, tmp_path, num_epochs=1, use_lora=use_lora)
    trained.train()
    file = tmp_path / "checkpoints" / "checkpoint_0" / "model.safetensors"
    # Where several processes train, each holds the model within another one.
    save_file({f"module.{name}": weight for name, weight in load_file(file).items()}, file)
    seal(file.parent)

    resumed = made(folder, tmp_path, resume_from=str(tmp_path), use_lora=use_lora)

    pairs = zip(trained_weights(resumed), trained_weights(trained), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(tmp_path, folder):
    made(folder, tmp_path, num_epochs=1).train()
    (tmp_path / "checkpoints" / ".checkpoint_1.tmp").mkdir()

    assert epoch_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint_0"
    assert epoch_checkpoint(tmp_path / "checkpoints" / "checkpoint_0").name == "checkpoint_0"


def test_refuses_to_mix_its_checkpoints_with_those_of_another_run(tmp_path, folder):
    made(folder, tmp_path).train()

    with pytest.raises(
        ValueError, match=r"expected no checkpoint after epoch -1, found checkpoint_1 of an earlier run"
    ):
        made(folder, tmp_path)
    with pytest.raises(ValueError, match=r"expected no checkpoint after epoch 0, found checkpoint_1"):
        made(folder, tmp_path, resume_from=str(tmp_path / "checkpoints" / "checkpoint_0"))


def test_refuses_to_resume_an_adapter_of_another_kind(tmp_path, folder):
    made(folder, tmp_path, use_lora=False).train()

    with pytest.raises(ValueError, match="expected a checkpoint of this adapter or model, .* the same use_lora"):
        made(folder, tmp_path, resume_from=str(tmp_path))


def test_saves_weights_with_a_model_card(tmp_path, folder):
    trainer = made(folder, tmp_path / "logs", num_epochs=1)

    trainer.save_pretrained(tmp_path / "saved")
    trainer.create_model_card(str(tmp_path))

    assert (tmp_path / "saved" / "pytorch_lora_weights.safetensors").is_file()
    card = (tmp_path / "saved" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["plumbline", "ddpo"]}
    assert str(folder) not in card  # a folder of this machine
    assert "# TRL DDPO Model" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed_precision": "fp16"}, "expected an accelerator, found a CPU"),
        ({"resume_from": "nowhere"}, "resume_from: expected a checkpoint or a folder of checkpoints at nowhere"),
        ({"accelerator_kwargs": {"log_with": "wandb"}}, "accelerator_kwargs: expected no log_with"),
        ({"log_with": "aim"}, "log_with='aim': expected a tracker that is installed"),
        ({"sample_num_steps": 2000}, "cannot be larger"),
    ],
)
def test_refuses_what_the_machine_or_the_model_does_not_have(tmp_path, folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        made(folder, tmp_path, **arguments)


def test_half_precision_is_refused_by_a_build_for_gpus_on_a_machine_without_one(tmp_path, monkeypatch):
    build = {True: None, False: torch.device("cuda")}  # what is there, and what torch was built for
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: build[check_available])

    with pytest.raises(ValueError, match="expected an accelerator, found a CPU"):
        make_accelerator(DDPOConfig(mixed_precision="fp16", logdir=str(tmp_path)), {})


def test_a_reward_that_is_not_finite_is_refused_before_training(tmp_path, folder):
    trainer = made(folder, tmp_path, reward=lambda images, prompts, metadata: torch.full((len(images),), float("inf")))
    before = trained_weights(trainer)

    with pytest.raises(ValueError, match="expected finite rewards"):
        trainer.train()

    assert all(torch.equal(*pair) for pair in zip(trained_weights(trainer), before, strict=True))


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(tmp_path, folder):
    trainer = made(folder, tmp_path)
    before = trained_weights(trainer)
    plain = trainer.calculate_loss

    def broken(*arguments):
        loss, *rest = plain(*arguments)
        return loss * float("nan"), *rest

    trainer.calculate_loss = broken

    with pytest.raises(ValueError, match="step 1: expected a finite gradient, found norm nan"):
        trainer.train()

    assert all(torch.equal(*pair) for pair in zip(trained_weights(trainer), before, strict=True))


def test_the_state_of_a_checkpoint_is_plain_json(tmp_path, folder):
    made(folder, tmp_path, num_epochs=1, per_prompt_stat_tracking=True).train()

    state = json.loads(Path(tmp_path / "checkpoints" / "checkpoint_0" / "epoch_state.json").read_text())

    assert (state["epoch"], state["global_step"]) == (0, 2)
    assert sum(len(rewards) for rewards in state["prompt_rewards"].values()) == 4
