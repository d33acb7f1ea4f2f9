"""Several processes for one stage: what PLUMBLINE_LAUNCH may say, and who publishes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from stages.contracts.closure import ROOT
from stages.contracts.launch import Launcher, launcher, unlaunched
from stages.contracts.stage import EXIT_STOPPED

PROFILES = sorted((ROOT / "pipelines" / "accelerate").glob("*.yaml"))

STAGE = '''
"""Stage for tests: each process says who it is, the first one writes."""
import os
import sys
import time
from pathlib import Path
from stages.contracts.launch import launcher
from stages.contracts.stage import Input, Output, Scratch, stage_main

def run(*, source: Input, copy: Output, scratch: Scratch) -> None:
    """Copy."""
    rank = os.environ.get("RANK", "alone")
    print("heard", rank, flush=True)
    (scratch / f"process-{rank}").write_text(str(os.getpid()))
    if source.read_text() == "fail" and rank == "1":
        raise ValueError("expected better, found worse; try again")
    if source.read_text() == "wait":
        time.sleep(60)
    if rank in {"0", "alone"}:
        copy.write_text(source.read_text())

if __name__ == "__main__":
    stage_main(run, launcher=launcher)
'''


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "probe.py").write_text(STAGE)
    (tmp_path / "source.txt").write_text("abc")
    return tmp_path


def start(workspace, launch):
    return subprocess.Popen(
        [sys.executable, "probe.py", "--source", "source.txt", "--copy", "out/copy"],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PLUMBLINE_LAUNCH": launch, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(workspace, launch):
    process = start(workspace, launch)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("text", [None, "", "  "])
def test_nothing_is_launched_unless_asked_for(monkeypatch, text):
    monkeypatch.delenv("PLUMBLINE_LAUNCH", raising=False)
    if text is not None:
        monkeypatch.setenv("PLUMBLINE_LAUNCH", text)

    assert launcher() is None


def test_a_profile_goes_to_accelerate_with_what_overrides_it(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_LAUNCH", f"{PROFILES[0]} --num_processes 2")

    found = launcher()

    expected = ("-m", "accelerate.commands.launch", "--config_file", str(PROFILES[0]), "--num_processes", "2")
    assert found == Launcher(expected, machine_rank=0)


@pytest.mark.parametrize(
    "text", ["torchrun --node_rank 3 --nnodes 4", "torchrun --node-rank=3", f"{PROFILES[0]} --machine_rank 3"]
)
def test_a_machine_that_is_not_the_first_is_told_by_its_rank(monkeypatch, text):
    monkeypatch.setenv("PLUMBLINE_LAUNCH", text)

    found = launcher()

    assert found is not None
    assert found.machine_rank == 3
    assert not found.is_first_machine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpirun -n 2", "expected a profile of accelerate .* or torchrun, .* found 'mpirun'"),
        ("nowhere.yaml", "expected a profile at nowhere.yaml, found none"),
        ("torchrun --node_rank first", "expected --node_rank as a number, found 'first'"),
        ("torchrun --nnodes 2 --rdzv_backend c10d", "expected --node_rank beside --nnodes, found none"),
    ],
)
def test_says_what_it_cannot_launch(monkeypatch, text, message):
    monkeypatch.setenv("PLUMBLINE_LAUNCH", text)

    with pytest.raises(ValueError, match=message):
        launcher()


def test_says_that_a_profile_is_no_mapping(monkeypatch, tmp_path):
    for text in ("[1, 2]", "a: ["):
        (tmp_path / "p.yaml").write_text(text)
        monkeypatch.setenv("PLUMBLINE_LAUNCH", str(tmp_path / "p.yaml"))

        with pytest.raises(ValueError, match=r"p\.yaml: expected (YAML|the settings)"):
            launcher()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_profiles_hold_what_accelerate_knows_and_nothing_that_changes_results(profile):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(profile))

    assert config.distributed_type.value in {"MULTI_GPU", "FSDP", "DEEPSPEED"}
    assert yaml.safe_load(profile.read_text())["mixed_precision"] == "no"
    assert config.num_processes > 1


def test_the_profiles_are_there():
    assert [path.stem for path in PROFILES] == ["ddp", "fsdp2", "multi_node", "zero3"]


@pytest.mark.slow
def test_all_processes_run_and_the_first_is_heard_and_published(workspace):
    status, out, err = finish(workspace, "torchrun --nproc_per_node 2")

    assert status == 0, err
    assert out.splitlines() == ["heard 0"]
    assert [path.name for path in (workspace / "out").iterdir()] == ["copy"]
    assert (workspace / "out" / "copy").read_text() == "abc"


@pytest.mark.slow
def test_a_process_that_fails_fails_the_stage_and_nothing_is_published(workspace):
    (workspace / "source.txt").write_text("fail")

    status, _, err = finish(workspace, "torchrun --nproc_per_node 2")

    assert status == 1
    assert "probe: expected better, found worse; try again" in err
    assert err.splitlines()[-1].startswith("probe: the processes that PLUMBLINE_LAUNCH asks for ended with status 1")
    assert not list((workspace / "out").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_no_process_outlives_the_stage(workspace, signal):
    (workspace / "source.txt").write_text("wait")
    stage = start(workspace, "torchrun --nproc_per_node 2")
    while len(files := list(workspace.glob("checkpoints/probe/*/process-*"))) < 2 or not all(
        file.read_text() for file in files
    ):
        time.sleep(0.05)
        assert stage.poll() is None
    family = [psutil.Process(int(file.read_text())) for file in files]

    getattr(stage, signal)()
    stage.communicate(timeout=30)

    # Told to end, it says that the same command goes on.
    assert signal == "kill" or stage.returncode == EXIT_STOPPED
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


def test_another_machine_computes_and_publishes_nothing(workspace):
    script = (workspace / "probe.py").read_text()
    elsewhere = """
class Elsewhere:
    is_first_machine = False
    def run(self, words, key):
        (Path("key")).write_text(key)
        assert words[0] == "probe.py"

if __name__ == "__main__":
    stage_main(run, launcher=lambda may_share: Elsewhere())
"""
    (workspace / "probe.py").write_text(script[: script.index("if __name__")] + elsewhere)
    left = workspace / "out" / "copy.tmp-of-the-first"
    left.parent.mkdir()
    left.write_text("half")

    status, _, err = finish(workspace, "")

    assert status == 0, err
    assert len((workspace / "key").read_text()) == 16
    assert left.read_text() == "half"
    assert not Path(workspace / "out" / "copy").exists()


def test_a_training_of_one_process_says_so_where_several_are_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("PLUMBLINE_LAUNCH", "torchrun --nproc_per_node 2")
    unlaunched()
    said = capsys.readouterr().out
    monkeypatch.delenv("PLUMBLINE_LAUNCH")
    unlaunched()

    assert "PLUMBLINE_LAUNCH is for trainings by BCO, KTO and DPO; this one runs in one process" in said
    assert capsys.readouterr().out == ""


def test_a_method_of_one_process_is_not_launched_in_several_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setenv("PLUMBLINE_LAUNCH", "torchrun --nproc_per_node 2")

    assert launcher(may_share=False) is None
    assert "this one runs in one process" in capsys.readouterr().out
    assert launcher(may_share=True) is not None
    assert capsys.readouterr().out == ""
