"""KTO's losses and KL estimate against numbers that TRL 0.21 gave."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stages.losses.kto import mismatched_kl, unpaired_loss_kind
from tests.material import SHARED, needs_shared

CASE = SHARED / "parity" / "out" / "kto" / "loss"


@needs_shared
@pytest.mark.parametrize("number", range(8))
def test_rows_in_any_order_have_the_peers_losses_kl_and_gradients(number):
    tensors = load_file(CASE.with_suffix(".safetensors"))
    case = json.loads(CASE.with_suffix(".json").read_text())
    values, beta = case["values"][str(number)], case["params"]["beta"]
    policy, reference = (
        torch.cat([tensors[f"in/{number}/{model}_{kind}_logps"] for kind in ("chosen", "rejected")])
        for model in ("policy", "reference")
    )
    labels = torch.tensor([True] * values["nc"] + [False] * values["nr"])
    # TRL gives the chosen rows first; ours come in another order and go back to it below.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
    policy.requires_grad_()

    kind = unpaired_loss_kind(values["loss_type"])
    kl = torch.tensor(0.0)
    if kind.needs_mismatched:
        kl = mismatched_kl(tensors[f"in/{number}/policy_KL_logps"], tensors[f"in/{number}/reference_KL_logps"])
    weights = {name: values[name] for name in ("desirable_weight", "undesirable_weight")}
    losses = kind.function(policy[order], reference[order], labels[order], kl, beta=beta, **weights)
    losses.mean().backward()

    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(kl, tensors[f"out/{number}/kl"].reshape(()), **close)
    torch.testing.assert_close(losses, tensors[f"out/{number}/losses"][order], **close)
    for kind_name, where in (("chosen", labels), ("rejected", ~labels)):
        if where.any():
            torch.testing.assert_close(
                policy.grad[where], tensors[f"out/{number}/grad_policy_{kind_name}_logps"], **close
            )
