"""Five training steps of BCO in stored order against TRL 0.21's."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.trainers import BCOConfig, BCOTrainer
from tests.material import SHARED, needs_shared

ASSETS = SHARED / "parity" / "assets"
CASE = SHARED / "parity" / "out" / "bco" / "train_plain"


@needs_shared
def test_five_steps_give_the_peers_batches_losses_metrics_and_weights(tmp_path):
    case = json.loads(CASE.with_suffix(".json").read_text())
    names = ("beta", "learning_rate", "max_steps", "per_device_train_batch_size", "max_length", "max_grad_norm", "seed")
    args = BCOConfig(
        str(tmp_path),
        **{name: case["params"][name] for name in names},
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
    )
    batches = []
    trainer = BCOTrainer(
        AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama"),
        AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama_ref"),
        args=args,
        train_dataset=Dataset.from_list(case["values"]["rows"]),
        processing_class=AutoTokenizer.from_pretrained(ASSETS / "tok"),
    )
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)["input_ids"].tolist()) or collate(rows)

    trainer.train()

    assert batches[:5] == case["values"]["batches"]
    found = [line for line in trainer.state.log_history if "loss" in line]
    for line, logged, called in zip(found, case["values"]["log_history"][:5], case["values"]["per_call"], strict=True):
        assert line["loss"] == pytest.approx(called["loss"], abs=1e-4)
        for name in ("grad_norm", "learning_rate", "delta", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert line[name] == pytest.approx(logged[name], rel=1e-4, abs=1e-5)
        for name in ("logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(logged[name], rel=1e-5)
    weights = trainer.model.state_dict()
    for name, expected in load_file(CASE.with_suffix(".safetensors")).items():
        torch.testing.assert_close(weights[name.removeprefix("out/")], expected, rtol=0, atol=1e-4)
