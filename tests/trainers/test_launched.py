"""A script that makes any of the classes, launched by accelerate in two processes: whole, sharded, and resumed."""

import os
import subprocess
import sys

import pytest

from stages.contracts.closure import ROOT
from tests.trainers.launched import TRAINERS


@pytest.mark.long
@pytest.mark.parametrize("profile", ["ddp", "fsdp2"])
def test_each_class_trains_and_resumes_where_accelerate_launches_it(tmp_path, profile):
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"{ROOT}/pipelines/accelerate/{profile}.yaml"]
    command = [sys.executable, *launch, "--num_processes", "2", "-m", "tests.trainers.launched", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    expected = {f"resumed {name}_{with_adapter}" for name in TRAINERS for with_adapter in (False, True)}
    assert expected | ({"stepped"} if profile == "ddp" else set()) <= set(done.stdout.splitlines())
