"""Reward model: scores, loss, probabilities and accuracy of a batch against TRL 0.7.10's."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.trainers import RewardConfig, RewardTrainer
from tests.material import SHARED, needs_shared

ASSETS = SHARED / "parity" / "assets"
CASE = SHARED / "parity" / "out" / "reward" / "batch"
CLOSE = {"rtol": 1e-5, "atol": 5e-6}


@needs_shared
def test_a_batch_gives_the_peers_scores_loss_probabilities_and_accuracy(tmp_path):
    tensors = load_file(CASE.with_suffix(".safetensors"))
    batch = {name.removeprefix("in/"): tensor for name, tensor in tensors.items() if name.startswith("in/")}
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(ASSETS / "tiny_llama_rm"),
        RewardConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=False),
        eval_dataset=Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()}),
        tokenizer=AutoTokenizer.from_pretrained(ASSETS / "tok"),
    )
    trainer.model.eval()

    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    predicted = trainer.predict(trainer.eval_dataset)

    torch.testing.assert_close(loss, tensors["out/loss"], **CLOSE)
    torch.testing.assert_close(outputs["losses"], tensors["out/per_pair_loss_correct"], **CLOSE)
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(outputs[f"rewards_{side}"], tensors[f"out/rewards_{side}"][:, 0], **CLOSE)
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), tensors["out/probs"], **CLOSE)
    torch.testing.assert_close(torch.from_numpy(predicted.label_ids), tensors["out/labels"])
    expected = json.loads(CASE.with_suffix(".json").read_text())["values"]["accuracy"]["accuracy"]
    assert predicted.metrics["test_accuracy"] == pytest.approx(expected)
