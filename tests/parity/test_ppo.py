"""PPO against TRL 0.7.10's numbers: masked statistics, penalties, advantages, losses, and two whole steps."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from stages.losses.ppo import (
    compute_advantages,
    entropy_from_logits,
    kl_penalties,
    masked_mean,
    masked_var,
    masked_whiten,
    token_rewards,
)
from stages.trainers import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import tiny_tokenizer
from tests.trainers.tiny_ppo import ppo_config, tiny_policy

ASSETS = SHARED / "parity" / "assets"
CASES = SHARED / "parity" / "out" / "ppo"
pytestmark = needs_shared


def read(name):
    case = json.loads((CASES / f"{name}.json").read_text())
    return case, load_file(CASES / f"{name}.safetensors")


def close(found, expected, mask=None):
    if mask is not None:
        found, expected = found[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_masked_statistics_and_entropy():
    _, tensors = read("primitives")
    x, mask = tensors["in/x"], tensors["in/mask"]

    close(masked_mean(x, mask), tensors["out/masked_mean"])
    close(masked_mean(x, mask, dim=1), tensors["out/masked_mean_axis1"])
    close(masked_var(x, mask), tensors["out/masked_var"])
    close(masked_var(x, mask, unbiased=False), tensors["out/masked_var_biased"])
    close(masked_whiten(x, mask), tensors["out/masked_whiten"])
    close(masked_whiten(x, mask, shift_mean=False), tensors["out/masked_whiten_noshift"])
    close(entropy_from_logits(tensors["in/logits"]), tensors["out/entropy"])


@pytest.mark.parametrize("kind", ["kl", "abs", "mse", "full"])
def test_rewards_under_each_penalty(kind):
    case, tensors = read("compute_rewards")
    suffix = "_full" if kind == "full" else ""

    kls = kl_penalties(tensors[f"in/logprobs{suffix}"], tensors[f"in/ref_logprobs{suffix}"], kind=kind)
    found = token_rewards(tensors["in/scores"], kls, tensors["in/masks"], kl_coef=case["params"]["kl_coef"])

    for name, value in found._asdict().items():
        close(value, tensors[f"out/{kind}/{name}"])


@pytest.mark.parametrize("index", [0, 1])
def test_advantages_of_responses_in_one_piece(index):
    case, tensors = read("compute_advantages")
    mask = tensors["in/mask"]

    found = compute_advantages(tensors["in/values"], tensors["in/rewards"], mask, **case["params"]["configs"][index])

    close(found.values, tensors[f"out/{index}/values"])
    # TRL goes on through prompts and padding; what lies there is read by nothing.
    close(found.advantages, tensors[f"out/{index}/advantages"], mask)
    close(found.returns, tensors[f"out/{index}/returns"], mask)


def test_returns_of_whitened_rewards_where_no_padding_follows():
    case, tensors = read("compute_advantages")
    mask = tensors["in/mask"]

    found = compute_advantages(tensors["in/values"], tensors["in/rewards"], mask, **case["params"]["configs"][2])

    # TRL whitens padding as well, which puts a reward behind the end of the first two rows.
    close(found.returns[2], tensors["out/2/returns"][2], mask[2])
    assert not torch.allclose(found.returns[0] * mask[0], tensors["out/2/returns"][0] * mask[0], atol=1e-4)


def test_p13_a_hole_in_the_mask_is_stepped_over_where_the_peer_counts_it():
    case, tensors = read("compute_advantages")
    mask = tensors["in/mask_hole"]

    found = compute_advantages(tensors["in/values"], tensors["in/rewards"], mask, **case["params"]["hole"])

    # Row 2 has no hole. In row 0 TRL takes the value 0 of the hole for the next one, and decays twice.
    close(found.returns[2], tensors["out/hole/returns"][2], mask[2])
    assert not torch.allclose(found.returns[0, 3], tensors["out/hole/returns"][0, 3], atol=1e-3)


@pytest.mark.parametrize("index", ["0", "1", "2"])
def test_losses_gradients_and_statistics(index, tmp_path):
    case, tensors = read("loss")
    settings = {**case["params"]["defaults"], **case["values"][index]}
    trainer = PPOTrainer(ppo_config(**settings), tiny_policy(), tokenizer=tiny_tokenizer())
    names = ("old_logprobs", "values", "logits", "vpreds", "logprobs", "mask", "advantages", "returns")
    inputs = {name: tensors[f"in/{index}/{name}"] for name in names}
    logprobs, vpreds = (inputs[name].requires_grad_() for name in ("logprobs", "vpreds"))

    policy, value, stats = trainer.loss(**inputs)
    (policy + value).backward()

    close(policy.detach(), tensors[f"out/{index}/pg_loss"])
    close(value.detach(), tensors[f"out/{index}/vf_loss_times_coef"])
    close(logprobs.grad, tensors[f"out/{index}/grad_logprobs"])
    close(vpreds.grad, tensors[f"out/{index}/grad_vpreds"])
    for name, expected in tensors.items():
        if name.startswith(f"out/{index}/stats/"):
            close(stats[name.rpartition("/")[2].replace(".", "/")], expected)


def test_two_steps_give_the_peers_statistics_and_weights():
    case, tensors = read("step_default")
    given = case["params"]["config"]
    named = {field.name for field in dataclasses.fields(PPOConfig)} - {"is_encoder_decoder", "is_peft_model"}
    settings = {
        name: value for name, value in given.items() if name in named and not name.startswith(("global", "back"))
    }
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(str(ASSETS / "tiny_llama"))
    policy.v_head.summary.load_state_dict(
        {k.rpartition(".")[2]: v for k, v in load_file(ASSETS / "v_head.safetensors").items()}
    )
    trainer = PPOTrainer(
        PPOConfig(**settings, accelerator_kwargs={"cpu": True}),
        policy,
        AutoModelForCausalLMWithValueHead.from_pretrained(str(ASSETS / "tiny_llama_ref")),
        AutoTokenizer.from_pretrained(ASSETS / "tok"),
    )
    queries, responses = ([tensors[f"in/{name}{i}"] for i in range(4)] for name in ("query", "response"))

    for k, expected in enumerate(case["values"]["stats"]):
        stats = trainer.step(queries, responses, list(tensors["in/scores"] * (k + 1)))

        assert set(case["values"]["stat_names"]) <= set(stats)
        for name, value in expected.items():
            if value is not None:
                assert stats[name] == pytest.approx(value, rel=2e-5, abs=2e-6), name
        mask = torch.from_numpy(stats["objective/logprobs"]) != 0
        # Sums of up to 17 differences of numbers near 5, each right to seven digits.
        found = torch.from_numpy(stats["objective/kl_dist"])
        torch.testing.assert_close(found, tensors[f"out/step{k}/objective.kl_dist"], rtol=0, atol=3e-5)
        for name in ("logprobs", "ref_logprobs"):
            close(torch.from_numpy(stats[f"objective/{name}"]), tensors[f"out/step{k}/objective.{name}"], mask)

    assert trainer.kl_ctl.value == pytest.approx(case["values"]["kl_coef_after"], rel=1e-7)
    weights = {name.removeprefix("pretrained_model."): weight for name, weight in policy.state_dict().items()}
    for name, expected in tensors.items():
        if name.startswith(("out/model", "out/v_head")):
            torch.testing.assert_close(weights[name.removeprefix("out/")], expected, rtol=0, atol=2e-5)
