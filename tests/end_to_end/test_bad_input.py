"""Bad input, as a user meets it under `dvc repro`: one clear sentence, a failure, and no traceback."""

import json

import pytest

from tests.workspace import SMALL, Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """A workspace whose base model is there."""
    workspace = Workspace(tmp_path_factory.mktemp("bad") / "project", SMALL)
    workspace.repro("base_model")
    return workspace


def fails_with(workspace, overrides, *targets):
    """Reproduce under `overrides`, expect a failure, and give the stage's words."""
    before = (workspace.root / "params.yaml").read_text()
    try:
        workspace.set_params(overrides)
        done = workspace.dvc("repro", *targets, check=False)
    finally:
        (workspace.root / "params.yaml").write_text(before)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def log_of(workspace, rows):
    (workspace.root / "data" / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"inputs": {"feedback": "data/bad.jsonl"}}


def test_a_misspelt_parameter(based):
    error = fails_with(based, {"ingestion": {"label_treshold": 3}}, "ingestion")

    assert "ingestion.label_treshold is no parameter; did you mean label_threshold?" in error


def test_a_missing_log(based):
    error = fails_with(based, {"inputs": {"feedback": "data/nothing.jsonl"}}, "ingestion")

    assert "nothing.jsonl" in error


def test_a_log_in_which_every_row_is_rejected(based):
    rows = [{"prompt": "p", "completion": " ", "label": True}] * 3

    error = fails_with(based, log_of(based, rows), "ingestion")

    assert "empty_completion" in error
    assert "bad.jsonl:1" in error


@pytest.mark.long
def test_feedback_of_one_class(based):
    rows = [{"prompt": f"prompt {i}", "completion": "yes", "label": True} for i in range(30)]

    error = fails_with(based, log_of(based, rows), "bco_rows")

    assert "desired" in error
    assert "undesired" in error


def test_a_model_folder_without_safetensors(based):
    folder = based.root / "data" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"x")
    overrides = {"base_model": {"source": "local"}, "inputs": {"base_model": "data/model"}}

    error = fails_with(based, overrides, "base_model")

    assert "safetensors" in error


def test_a_max_length_without_room_for_a_completion(based):
    error = fails_with(based, {"tokenization": {"max_length": 1}}, "tokenization")

    assert "max_length" in error
    assert "rows fit" in error
