"""Packing, iterative steps and seeds against TRL 0.7.10's numbers."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import ConstantLengthDataset, IterativeSFTTrainer, set_seed
from tests.material import SHARED, needs_shared

ASSETS = SHARED / "parity" / "assets"
OUT = SHARED / "parity" / "out"
PACKING = [f"{tokenizer}|{number}" for tokenizer in ("tok", "tok_post") for number in range(4)]


@needs_shared
@pytest.mark.parametrize("key", PACKING)
def test_packed_rows_are_the_peers_with_the_tokens_that_it_drops(key):
    case = json.loads((OUT / "sft" / "packing.json").read_text())
    values = case["values"][key]
    texts = [{"text": text} for text in case["params"]["texts"]]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / key.split("|")[0])
    packer = ConstantLengthDataset(tokenizer, texts, "text", shuffle=False, **values["config"])

    rows = [row.input_ids for row in packer.rows()]

    # TRL drops the tail of each buffer, so beyond the first one its rows begin elsewhere.
    num_same = len(values["packed"]) if values["config"]["num_of_sequences"] == 1024 else 1
    assert rows[:num_same] == values["packed"][:num_same]
    assert sum(map(len, rows)) == values["tokens_in"]


@needs_shared
def test_steps_give_the_peers_losses_log_and_weights(tmp_path):
    values = json.loads((OUT / "iterative_sft" / "input_ids.json").read_text())["values"]
    args = TrainingArguments(
        str(tmp_path),
        learning_rate=1e-3,
        max_steps=10,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_llama")
    trainer = IterativeSFTTrainer(model, args, AutoTokenizer.from_pretrained(ASSETS / "tok"))

    rates = []
    for call in (values["batches"][:2], values["batches"][2:]):
        rows = [
            (ids, mask) for batch in call for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        ids = [torch.tensor(row)[torch.tensor(mask).bool()] for row, mask in rows]
        rates.append(trainer.step(ids)["learning_rate"])

    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx(values["losses"], rel=1e-5)
    # TRL logs the rate of the next step, as `step` returns it.
    assert rates == pytest.approx([line["learning_rate"] for line in values["log_history"]])
    weights = trainer.model.state_dict()
    for name, expected in load_file(OUT / "iterative_sft" / "input_ids.safetensors").items():
        torch.testing.assert_close(weights[name.removeprefix("out/")], expected, rtol=1e-5, atol=1e-6)


@needs_shared
def test_a_seed_gives_the_peers_draws():
    values = json.loads((OUT / "set_seed.json").read_text())["values"]
    tensors = load_file(OUT / "set_seed.safetensors")

    set_seed(123)

    assert [random.random() for _ in range(3)] == values["random"]
    assert np.random.rand(3).tolist() == values["numpy"]
    assert np.random.permutation(6).tolist() == values["numpy_perm"]
    torch.testing.assert_close(torch.rand(4), tensors["out/torch_rand"])
    torch.testing.assert_close(torch.randn(4), tensors["out/torch_randn"])
    assert torch.randperm(8).tolist() == tensors["out/torch_perm"].tolist()
