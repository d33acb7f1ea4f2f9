"""What `doctor` says of a workspace, above all of one in which something is broken."""

import subprocess
import sys

import pytest

from tests.workspace import Workspace


def doctor(workspace, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "doctor"],
        cwd=workspace.root,
        env={**workspace.environment, "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for line in done.stdout.splitlines():
        verdict, what, text = line.split(maxsplit=2)
        found[what] = (verdict, text)
    return done.returncode, found, done.stderr


@pytest.mark.slow
def test_a_new_clone_is_well(tmp_path):
    status, found, _ = doctor(Workspace(tmp_path / "project", {}), tmp_path)

    assert status == 0, found
    assert {"python", "packages", "graph", "server", "device", "disk", "model", "data"} <= found.keys()
    assert found["server"][1].startswith("none is set: each run has its own on loopback")
    assert found["model"] == ("ok", "made from data/demo/demonstrations.jsonl")
    assert found["data"] == ("ok", "data/demo/feedback.jsonl will be made by its stage")


@pytest.mark.slow
def test_every_fault_is_named_and_what_is_well_beside_it(tmp_path):
    workspace = Workspace(tmp_path / "project", {"normalization": {"test_shar": 0.2}})
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  base_mod")

    status, found, errors = doctor(workspace, tmp_path)

    assert status == 1
    assert "Traceback" not in errors
    verdict, text = found["graph"]
    assert verdict == "FAIL"
    assert "normalization.test_shar is no parameter; did you mean test_share?" in text
    assert found["disk"][0] == "FAIL"
    assert "`git checkout dvc.lock`" in found["disk"][1]
    assert found["python"][0] == "ok"
    assert {"server", "device"} <= found.keys()


@pytest.mark.slow
def test_demo_choices_and_a_missing_merge_driver_are_named_beside_a_log_to_pull(tmp_path):
    workspace = Workspace(tmp_path / "project", {"inputs": {"feedback": "data/own.jsonl"}})
    (workspace.root / "data").mkdir()
    (workspace.root / "data/own.jsonl.dvc").write_text(f"outs:\n- md5: {'0' * 32}\n  path: own.jsonl\n")
    (workspace.root / ".gitattributes").write_text("dvc.lock merge=ours\n")

    status, found, _ = doctor(workspace, tmp_path)

    assert status == 1
    assert found["choices"][0] == "FAIL"
    assert found["data"] == ("note", "data/own.jsonl is not here; `dvc pull data/own.jsonl` brings it")
    assert found["merges"][1].endswith("`make setup` sets up their merge")


@pytest.mark.slow
def test_a_missing_log_and_a_model_without_weights_are_named(tmp_path):
    workspace = Workspace(tmp_path / "project", {"inputs": {"feedback": "data/own.jsonl", "base_model": "data/own"}})
    workspace.set_params({"base_model": {"source": "local"}})

    status, found, _ = doctor(workspace, tmp_path)

    assert status == 1
    assert found["model"] == ("FAIL", "expected config.json and *.safetensors in inputs.base_model, data/own")
    assert found["data"] == ("FAIL", "expected the log at inputs.feedback, data/own.jsonl; found nothing there")
