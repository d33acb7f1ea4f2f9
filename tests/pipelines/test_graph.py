"""The graph of dvc.yaml, read through DVC, against the design."""

import pytest

from pipelines.graph import read_graph, stages_of, targets_of
from stages.contracts.closure import ROOT
from stages.trainers import METHODS
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


def test_edges_are_those_of_the_design(nodes):
    edges = {node.name: set(node.feeding) for node in nodes}

    assert edges["ingestion"] == {"demo_feedback"}
    assert edges["normalization"] == {"ingestion", "base_model"}
    assert edges["density_ratio"] == {"tokenization", "prompt_embedding"}
    assert edges["bco_rows"] == {"tokenization", "reference_logprobs@base", "density_ratio"}
    assert edges["dpo_rows"] == {"tokenization", "reference_logprobs@base"}
    assert edges["kto_rows"] == edges["dpo_rows"] | {"mismatched_reference_logprobs@base"}
    assert edges["sft_rows"] == edges["reward_rows"] == {"tokenization"}
    for method in ("bco", "kto", "dpo", "sft", "reward"):
        assert edges[f"training@{method}"] == {"base_model", "tokenization", f"{method}_rows"}
    assert edges["ppo_training"] == {"base_model", "normalization", "ppo_rows"}
    assert edges["gate@bco"] == {"evaluation@bco"}
    assert "gate@bco" not in edges["report@bco"]


def test_all_but_the_stage_code_depend_on_their_own_file_of_it(nodes):
    assert {node.name for node in nodes if "code" not in node.upstream} == {"code"}
    assert all(len([dep for dep in node.deps if dep.startswith("artifacts/code/")]) == 1 for node in nodes[1:])
    assert not any(dep.endswith(".py") for node in nodes for dep in node.deps)


def test_stages_come_after_what_they_read(nodes):
    names = [node.name for node in nodes]

    assert names[0] == "code"
    assert all(names.index(other) < names.index(node.name) for node in nodes for other in node.upstream)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_rows_a_training_an_evaluation_a_gate_and_a_report(nodes, method):
    own = stages_of(method, nodes)
    written = {out for node in own for out in node.outs}

    assert {
        f"artifacts/rows/{method}",
        f"models/{method}",
        f"metrics/evaluation/{method}.json",
        f"metrics/gate/{method}.json",
        f"reports/{method}.html",
    } <= written
    assert len(own) == 5
    ends = targets_of([method], nodes)
    assert len(ends) == 2
    assert f"gate@{method}" in ends


def test_a_method_that_the_graph_has_not_is_named_with_the_nearest(nodes):
    with pytest.raises(ValueError, match=r"found 'pppo'; did you mean ppo\?"):
        targets_of(["pppo"], nodes)


def test_nobody_who_learns_reads_what_only_the_demo_knows(nodes):
    assert {node.name for node in nodes if "data/demo/truth.json" in node.deps} == set()


def test_nothing_switches_off_the_run_cache():
    text = (ROOT / "dvc.yaml").read_text()

    assert "persist" not in text
    # Of the verdict of a gate, which is small and may be missing; that doesn't switch it off, as the next test shows.
    assert text.count("cache: false") == text.count('"metrics/gate/${key}.json": {cache: false}') == 1
    assert "always_changed" not in text


@pytest.mark.slow
def test_the_run_cache_restores_what_is_not_cached_as_an_output(tmp_path):
    workspace = Workspace(tmp_path / "project", {})
    (workspace.root / "dvc.yaml").write_text(
        "stages:\n  judge:\n    cmd: cp said.txt verdict.json\n    deps: [said.txt]\n"
        "    metrics: [{verdict.json: {cache: false}}]\n"
    )
    for said in ("1", "2"):
        (workspace.root / "said.txt").write_text(said)
        assert workspace.repro("judge") == {"judge"}
    (workspace.root / "said.txt").write_text("1")

    assert "Stage 'judge' is cached - skipping run" in workspace.dvc("repro", "judge").stdout
    assert (workspace.root / "verdict.json").read_text() == "1"
