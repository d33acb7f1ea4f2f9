"""BCO computed in two ways gives the same: references, batches cut up, raw rows and columns, processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from stages.contracts.closure import ROOT
from tests.trainers.tiny import bco_trainer, encoded_rows, raw_rows, tiny_llama

RAW = Dataset.from_list(raw_rows(16))


def run(folder, **arguments):
    trainer = bco_trainer(folder, **{"max_steps": 4, **arguments})
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_equal_runs(one, other, *, atol=1e-5):
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=0, atol=atol)


def test_a_reference_from_the_column_is_that_of_a_live_model_and_of_a_copy(tmp_path):
    copied = run(tmp_path, rows=RAW)

    assert_equal_runs(run(tmp_path, rows=RAW, ref_model=tiny_llama()), copied)
    assert_equal_runs(run(tmp_path, rows=RAW, precompute_ref_log_probs=True), copied)


def test_an_adapter_switched_off_is_a_live_model_without_it(tmp_path):
    def adapter():
        return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")

    off = run(tmp_path, rows=RAW, peft_config=adapter())

    assert_equal_runs(run(tmp_path, rows=RAW, peft_config=adapter(), ref_model=tiny_llama()), off)
    assert_equal_runs(run(tmp_path, rows=RAW, peft_config=adapter(), precompute_ref_log_probs=True), off)


def test_eight_rows_at_once_are_four_accumulated_twice(tmp_path):
    settings = {"rows": encoded_rows(16), "reward_shift_update": "step"}

    once = run(tmp_path, per_device_train_batch_size=8, **settings)
    twice = run(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings)

    assert_equal_runs(twice, once)


def test_raw_rows_are_the_columns_that_stages_make_of_them(tmp_path):
    raw = bco_trainer(tmp_path, rows=RAW, ref_model=tiny_llama(seed=2), precompute_ref_log_probs=True)
    columns = raw.train_dataset.select_columns(["row_id", "input_ids", "prompt_length", "label", "reference_logps"])

    from_raw = run(tmp_path, rows=RAW, ref_model=tiny_llama(seed=2))

    assert_equal_runs(run(tmp_path, rows=columns), from_raw)


_WORKER = """
import json, sys
from pathlib import Path
import torch
from tests.trainers.tiny import bco_trainer, encoded_rows
folder, size = Path(sys.argv[1]), int(sys.argv[2])
trainer = bco_trainer(
    folder, rows=encoded_rows(16), eval_dataset=encoded_rows(7, seed=1), max_steps=4,
    per_device_train_batch_size=size, per_device_eval_batch_size=2, ddp_backend="gloo" if size == 4 else None,
)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    lines = [line for line in trainer.state.log_history if "loss" in line]
    kept = {k: v for k, v in metrics.items() if "/" in k or k in ("eval_loss", "eval_delta")}
    (folder / "found.json").write_text(json.dumps([lines, kept, trainer.method_state()["rewards"]]))
    torch.save({n: w.detach() for n, w in trainer.model.named_parameters()}, folder / "weights.pt")
"""


def launch(folder, size):
    processes = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = 8 // size
    for rank in range(world):
        distributed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "RANK": str(rank)}
        distributed |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(distributed if world > 1 else {})}
        command = [sys.executable, "-c", _WORKER, str(folder), str(size)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=200) for process in processes] == [0] * world
    return json.loads((folder / "found.json").read_text()), torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()

    (one, one_weights), (two, two_weights) = launch(folders[0], 8), launch(folders[1], 4)

    for line, other in zip(one[0], two[0], strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert one[1] == pytest.approx(two[1], rel=1e-4, abs=1e-5)
    for name in ("counts", "means", "deviations"):
        assert one[2][name] == pytest.approx(two[2][name], rel=1e-4, abs=1e-6)
    for name, weight in one_weights.items():
        torch.testing.assert_close(weight, two_weights[name], rtol=0, atol=1e-5)
