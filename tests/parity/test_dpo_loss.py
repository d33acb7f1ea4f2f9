"""DPO's losses against numbers that TRL 0.7.10 gave, with its choices where ours differ."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stages.losses.dpo import pair_loss_kind
from stages.losses.pairs import PairLogps, PairSettings
from tests.material import SHARED, needs_shared

CASE = SHARED / "parity" / "out" / "dpo" / "loss"
SIDES = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")


@needs_shared
@pytest.mark.parametrize("number", range(6))
def test_losses_and_gradients_are_the_peers(number):
    tensors = load_file(CASE.with_suffix(".safetensors"))
    values = json.loads(CASE.with_suffix(".json").read_text())["values"][str(number)]
    chosen, rejected, *reference = (tensors[f"in/{number}/{side}_logps"] for side in SIDES)
    counts = torch.full(chosen.shape, 7)
    logps = PairLogps(chosen.requires_grad_(), rejected.requires_grad_(), *reference, counts, counts)
    # TRL sums in IPO and lets gradients through the KL estimates of kto_pair.
    settings = PairSettings(
        beta=values["beta"], label_smoothing=values["label_smoothing"], ipo_averages=False, detach_kl=False
    )

    losses = pair_loss_kind(values["loss_type"]).function(logps, settings)
    losses.mean().backward()

    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(losses, tensors[f"out/{number}/losses"], **close)
    torch.testing.assert_close(losses.mean(), tensors[f"out/{number}/loss"], **close)
    torch.testing.assert_close(chosen.grad, tensors[f"out/{number}/grad_policy_chosen_logps"], **close)
    torch.testing.assert_close(rejected.grad, tensors[f"out/{number}/grad_policy_rejected_logps"], **close)
    for ratios, side in zip(logps.log_ratios(), ("chosen", "rejected"), strict=True):
        torch.testing.assert_close(values["beta"] * ratios.detach(), tensors[f"out/{number}/{side}_rewards"], **close)
