"""BCO's loss and reward shift against numbers that TRL 0.21 gave."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stages.losses.bco import bco_loss
from stages.losses.moments import RewardMoments
from tests.material import SHARED, needs_shared

CASE = SHARED / "parity" / "out" / "bco" / "loss_plain"


@needs_shared
def test_five_calls_give_the_peers_losses_shift_moments_and_gradients():
    tensors = load_file(CASE.with_suffix(".safetensors"))
    case = json.loads(CASE.with_suffix(".json").read_text())
    beta, moments = case["params"]["beta"], RewardMoments.empty()

    for number, (num_desired, num_undesired, is_training) in enumerate(case["params"]["calls"]):
        policy, reference = (
            torch.cat([tensors[f"in/{number}/{model}_{kind}_logps"] for kind in ("chosen", "rejected")])
            for model in ("policy", "reference")
        )
        policy.requires_grad_()
        labels = torch.tensor([True] * num_desired + [False] * num_undesired)
        if is_training:
            moments = moments.merged(RewardMoments.of(beta * (policy - reference), labels))
        result = bco_loss(policy, reference, labels, beta=beta, reward_shift=moments.shift("pooled"))
        result.losses.mean().backward()

        expected = case["values"][str(number)]
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(result.losses, tensors[f"out/{number}/losses"], **close)
        torch.testing.assert_close(result.rewards[labels], tensors[f"out/{number}/chosen_rewards"], **close)
        torch.testing.assert_close(result.rewards[~labels], tensors[f"out/{number}/rejected_rewards"], **close)
        for kind, where in (("chosen", labels), ("rejected", ~labels)):
            if where.any():
                gradient = tensors[f"out/{number}/grad_policy_{kind}_logps"]
                torch.testing.assert_close(policy.grad[where], gradient, **close)
        assert moments.shift("pooled").item() == pytest.approx(expected["delta"], rel=1e-5)
        assert moments.counts.sum().item() == expected["running"]["count"]
        assert moments.pooled_variance().item() == pytest.approx(expected["running"]["var"], rel=1e-5)
