"""PPO in two processes is PPO in one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from stages.contracts.closure import ROOT
from tests.equivalence import ppo_steps


def in_two_processes(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in "01":
        distributed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank}
        distributed |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **distributed}
        command = [sys.executable, "-m", ppo_steps.__name__, str(folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=200) for process in processes] == [0, 0]


def read(folder):
    return json.loads((folder / "found.json").read_text()), torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.long
def test_p10_two_processes_are_one(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()

    ppo_steps.two_steps(folders[0], 8)
    in_two_processes(folders[1])

    (one, one_weights), (two, two_weights) = map(read, folders)

    spread = {"ppo/std_scores", "tokens/queries_len_std", "tokens/responses_len_std", "ppo/returns/var", "ppo/val/var"}
    spread |= {"ppo/val/var_explained"}
    for stats, others in zip(one[0], two[0], strict=True):
        assert stats.keys() == others.keys()
        for name in stats.keys() - spread:
            assert stats[name] == pytest.approx(others[name], rel=1e-3, abs=1e-4), name
    assert one[1]["kl_coef"] == pytest.approx(two[1]["kl_coef"], rel=1e-6)
    assert one[1]["scores"] == pytest.approx(two[1]["scores"], rel=1e-6)
    assert one[2] == two[2]  # distributions hold the rows of both
    for name, weight in one_weights.items():
        torch.testing.assert_close(weight, two_weights[name], rtol=0, atol=2e-3)
    assert (folders[1] / "state" / "ppo_state.json").exists()
