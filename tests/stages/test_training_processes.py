"""Stage `training` in several processes: the same training as in one, and the same after a kill."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from stages.contracts.closure import ROOT
from stages.contracts.files import files_below
from tests.models.models_on_disk import write_local_pointer, write_model
from tests.stages.feedback import write_reference_logps, write_tokens
from tests.stages.training_runs import rows_of

COMMAND = (
    "-m stages.training --method bco --params training.bco --base-model models/base --tokens artifacts/tokens "
    "--rows artifacts/rows --model models/bco --metrics metrics.json --plots curves.csv"
)
# 37 rows in batches of 8, two batches a step: three steps an epoch, and a last batch of 5 that two processes can't
# share evenly.
PARAMS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "disable_dropout": False,
    "logging_steps": 3,
    "save_steps": 2,
    "max_start_reward": 100,  # the reference's log-probabilities are made up
}
DDP = f"{ROOT}/pipelines/accelerate/ddp.yaml --num_processes 2"
FSDP2 = f"{ROOT}/pipelines/accelerate/fsdp2.yaml --num_processes 2"


TERMS = {"rpo_alpha": 0.7, "use_weighting": True, "humanline": True, "log_epsilon_p": -0.01, "log_epsilon_r": 0.02}


def workspace(folder: Path, **params: Any) -> Path:
    """A folder in which the stage's command runs; `params` are further ones of its section."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = [
        {
            "label": bool(generator.random() < 0.5),
            "input_ids": generator.integers(3, 260, 6 + i % 5).tolist(),
            "prompt_length": 3,
        }
        for i in range(37)
    ]
    tokens = write_tokens(folder / "artifacts" / "tokens", rows)
    logps = write_reference_logps(folder / "logps", generator.normal(-25, 2, 37).tolist(), [3] * 37)
    rows_of("labelled", folder / "artifacts" / "rows", tokens=tokens, reference_logps=logps)
    write_model(folder / "model")
    (folder / "models").mkdir()
    write_local_pointer(folder / "models" / "base", folder / "model", path="model")
    (folder / "params.yaml").write_text(yaml.safe_dump({"training": {"bco": {**PARAMS, **params}}}))
    return folder


def start(folder: Path, launch: str = "") -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *COMMAND.split()],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PLUMBLINE_LAUNCH": launch, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def train(folder: Path, launch: str = "") -> None:
    status = start(folder, launch).wait(timeout=240)
    assert status == 0, (folder / "log").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = workspace(tmp_path_factory.mktemp("alone") / "work")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = workspace(tmp_path_factory.mktemp("sharded") / "work")
    train(folder, FSDP2)
    return folder


def assert_same_training(found: Path, expected: Path) -> None:
    curves, wanted = (pd.read_csv(folder / "curves.csv") for folder in (found, expected))
    assert list(curves.columns) == list(wanted.columns)
    np.testing.assert_allclose(curves.to_numpy(), wanted.to_numpy(), rtol=1e-4, atol=1e-6)
    weights, others = (load_file(folder / "models" / "bco" / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, others[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_have_the_losses_of_one(alone, tmp_path):
    folder = workspace(tmp_path / "work")

    train(folder, DDP)

    assert_same_training(folder, alone)
    assert [path.name for path in (folder / "models").iterdir() if path.name != "base"] == ["bco"]
    assert not (folder / "checkpoints" / "training-bco").exists()


@pytest.mark.slow
@pytest.mark.long
def test_sharded_processes_have_the_losses_of_one(alone, sharded):
    assert_same_training(sharded, alone)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("launch", [DDP, FSDP2], ids=["whole", "sharded"])
def test_terms_of_a_loss_and_a_reference_that_is_run_are_those_of_one_process(tmp_path, launch):
    one, two = (workspace(tmp_path / name, **TERMS) for name in ("one", "two"))

    train(one)
    train(two, launch)

    assert_same_training(two, one)
    assert {"nll_loss", "on_policy_weight"} <= set(pd.read_csv(two / "curves.csv").columns)


@pytest.mark.slow
@pytest.mark.long
def test_sharded_processes_go_on_after_kill_9_to_the_same_bytes(sharded, tmp_path):
    folder = workspace(tmp_path / "work")
    stage = start(folder, FSDP2)
    # The second of six steps: in the middle of an epoch and between two lines of the log.
    while not (states := list(folder.glob("checkpoints/*/*/checkpoint-2/trainer_state.json"))):
        time.sleep(0.01)
        assert stage.poll() is None, (folder / "log").read_text()
    family = psutil.Process(stage.pid).children(recursive=True)

    # The processes too: told of their launcher's end, they would stop behind the step with a checkpoint.
    for process in [psutil.Process(stage.pid), *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    stage.wait()

    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    shards = {file.name for file in files_below(states[0].parent / "pytorch_model_fsdp_0")}
    assert shards == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    train(folder, FSDP2)
    assert "going on from checkpoint-" in (folder / "log").read_text()
    for name in ("curves.csv", "metrics.json", "models/bco/model.safetensors", "models/bco/plumbline.json"):
        assert (folder / name).read_bytes() == (sharded / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.long
def test_says_that_a_batch_cannot_be_shared_before_a_model_is_loaded(tmp_path):
    folder = workspace(tmp_path / "work")
    (folder / "model" / "model.safetensors").write_bytes(b"")
    launch = DDP.replace("--num_processes 2", "--num_processes 3")

    assert start(folder, launch).wait(timeout=240) == 1

    log = (folder / "log").read_text()
    assert "training: expected per_device_train_batch_size as a multiple of the 3 processes" in log
    assert not (folder / "models" / "bco").exists()
