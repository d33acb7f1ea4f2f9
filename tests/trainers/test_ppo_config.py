"""PPO's configuration: names, order and defaults as documented, and values that can't be."""

import dataclasses
import inspect
import json

import pytest
from transformers import HfArgumentParser

from stages.trainers import PPOConfig, PPOTrainer
from tests.material import SHARED, needs_shared
from tests.trainers.tiny_ppo import ppo_config

METHODS = (
    "batched_forward_pass compute_rewards create_model_card gather_stats generate log_stats loss prepare_dataloader "
    "record_step_stats step train_minibatch"
)


@needs_shared
@pytest.mark.parametrize("documented", [PPOConfig, PPOTrainer])
def test_arguments_have_the_documented_names_order_and_defaults(documented):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[documented.__name__]

    found = list(inspect.signature(documented).parameters.values())

    assert [argument.name for argument in found] == [name for name, _ in ledger]
    for (name, default), argument in zip(ledger, found, strict=True):
        assert default == "<factory>" or repr(argument.default) == str(default), name


@needs_shared
@pytest.mark.parametrize("method", METHODS.split())
def test_methods_take_the_documented_arguments(method):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[f"PPOTrainer.{method}"]

    found = list(inspect.signature(getattr(PPOTrainer, method)).parameters.values())[1:]

    for (name, default), argument in zip(ledger, found, strict=False):
        assert argument.name == name
        assert (default is None) == (argument.default is inspect.Parameter.empty)
        assert default is None or repr(argument.default) == default
    assert all(extra.default is None or extra.kind is inspect.Parameter.VAR_KEYWORD for extra in found[len(ledger) :])


def test_fills_what_follows_from_other_arguments():
    config = PPOConfig(batch_size=24, mini_batch_size=3, gradient_accumulation_steps=2, steps=50)

    assert config.backward_batch_size == 6
    assert (config.world_size, config.global_batch_size, config.global_backward_batch_size) == (1, 24, 6)
    assert config.total_ppo_epochs == 3
    config.spread_over(4)
    assert (config.world_size, config.global_batch_size, config.global_backward_batch_size) == (4, 96, 24)


def test_p10_former_names_are_carried_over_and_stay_so_in_a_copy():
    config = PPOConfig(forward_batch_size=4, batch_size=8, optimize_cuda_cache=True)

    assert (config.mini_batch_size, config.optimize_device_cache) == (4, True)
    assert dataclasses.replace(config) == config


def test_a_command_line_sets_it():
    arguments = [
        "--batch_size",
        "8",
        "--kl_penalty",
        "full",
        "--use_score_scaling",
        "--target",
        "3",
        "--log_with",
        "wandb",
    ]

    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(arguments)

    assert config == PPOConfig(batch_size=8, kl_penalty="full", use_score_scaling=True, target=3.0, log_with="wandb")


def test_stands_on_one_level_for_trackers():
    found = PPOConfig(accelerator_kwargs={"cpu": True}, seed=3).to_dict()

    assert found["accelerator_kwargs/cpu"] is True
    assert found["seed"] == 3
    assert "accelerator_kwargs" not in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 6, "mini_batch_size": 4}, r"batch_size as a multiple of .* \(4\), found 6"),
        ({"kl_penalty": "l2"}, "kl_penalty as one of kl, abs, mse, full, found 'l2'"),
        ({"log_with": "paper"}, "log_with as one of all, .*tensorboard.* or None, found 'paper'"),
        ({"forward_batch_size": 2, "mini_batch_size": 4}, "forward_batch_size=2 and mini_batch_size=4"),
        ({"use_score_norm": True}, "expected use_score_scaling with use_score_norm"),
        ({"push_to_hub_if_best_kwargs": {"private": True}}, "expected a repo_id"),
        ({"ppo_epochs": 0}, "ppo_epochs above 0, found 0"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"gamma": 1.5}, "gamma of at least 0 and up to 1, found 1.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm above 0 or None"),
        ({"score_clip": -1.0}, "score_clip above 0 or None"),
        ({"vf_coef": -1.0}, "vf_coef of at least 0"),
        ({"target": None}, "target and horizon with adap_kl_ctrl, found None and 10000"),
        ({"init_kl_coef": None}, "init_kl_coef as a number, found None"),
    ],
)
def test_refuses_what_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        ppo_config(**given)


def test_a_fixed_coefficient_needs_no_target():
    assert PPOConfig(adap_kl_ctrl=False, target=None, horizon=None).target is None
