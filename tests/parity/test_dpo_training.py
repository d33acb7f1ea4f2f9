"""Five training steps of DPO in stored order against TRL 0.7.10's."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.trainers import DPOConfig, DPOTrainer
from tests.material import SHARED, needs_shared

ASSETS = SHARED / "parity" / "assets"
CASE = SHARED / "parity" / "out" / "dpo" / "train_sigmoid"


@needs_shared
def test_five_steps_give_the_peers_losses_metrics_and_weights(tmp_path):
    case = json.loads(CASE.with_suffix(".json").read_text())
    params, values = case["params"], case["values"]
    by_prompt = {row["prompt"]: row for row in values["rows"]}
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama"),
        AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama_ref"),
        args=DPOConfig(
            str(tmp_path),
            learning_rate=params["lr"],
            max_steps=params["steps"],
            per_device_train_batch_size=params["batch"],
            logging_steps=1,
            save_strategy="no",
            train_sampling_strategy="sequential",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([by_prompt[prompt] for batch in values["batches"] for prompt in batch]),
        tokenizer=AutoTokenizer.from_pretrained(ASSETS / "tok"),
    )

    trainer.train()

    found = [line for line in trainer.state.log_history if "loss" in line]
    # TRL's version of transformers logs the learning rate of the next step.
    rates = [params["lr"], *(line["learning_rate"] for line in values["log_history"][:4])]
    for line, logged, loss, rate in zip(found, values["log_history"][:5], values["per_call_loss"], rates, strict=True):
        assert line["loss"] == pytest.approx(loss, abs=1e-4)
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-6)
        # No reward ties here, where TRL would count a miss and we half a hit.
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert line[name] == pytest.approx(logged[name], rel=1e-4, abs=1e-5)
        for name in ("logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(logged[name], rel=1e-5)
    weights = trainer.model.state_dict()
    for name, expected in load_file(CASE.with_suffix(".safetensors")).items():
        torch.testing.assert_close(weights[name.removeprefix("out/")], expected, rtol=0, atol=1e-4)
