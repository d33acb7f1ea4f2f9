"""Sequence log-probabilities as TRL 0.21 computes them."""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stages.models.logprobs import completion_logps
from tests.material import SHARED, needs_shared

CASE = SHARED / "parity" / "out" / "bco" / "logps"


@needs_shared
def test_logps_of_policy_and_reference_are_the_peers():
    tensors = load_file(CASE.with_suffix(".safetensors"))
    params = json.loads(CASE.with_suffix(".json").read_text())["params"]
    batch = {
        "input_ids": tensors["in/completion_input_ids"],
        "attention_mask": tensors["in/completion_attention_mask"],
        "completion_mask": (tensors["in/completion_labels"] != -100).long(),
    }

    for name, expected in (("model", "out/logps"), ("ref_model", "out/ref_logps")):
        model = AutoModelForCausalLM.from_pretrained(SHARED / "parity" / params[name], dtype=torch.float32).eval()
        result = completion_logps(model, **batch, chunk_size=32)

        torch.testing.assert_close(result.logps, tensors[expected], rtol=1e-5, atol=0)
        if name == "model":
            torch.testing.assert_close(
                result.logps / result.num_tokens, tensors["out/average_logps"], rtol=1e-5, atol=0
            )
