"""The graph of dvc.yaml, read through DVC, against the code and the design."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.graph import code_problems, read_graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


def test_every_stage_lists_the_code_that_it_runs(nodes):
    assert code_problems(nodes) == []


def test_a_source_file_missing_from_deps_is_named(nodes):
    stage = next(node for node in nodes if node.name == "training@bco")
    without = dataclasses.replace(stage, deps=tuple(dep for dep in stage.deps if dep != "stages/losses/bco.py"))

    others = [node for node in nodes if node.name != stage.name]

    assert code_problems([*others, without]) == [
        "dvc.yaml: training@bco runs stages/losses/bco.py, which its deps don't list"
    ]


def test_a_source_file_too_much_in_deps_is_named(nodes):
    stage = next(node for node in nodes if node.name == "tokenization")
    more = dataclasses.replace(stage, deps=(*stage.deps, "stages/losses/bco.py"))

    assert code_problems([more]) == ["dvc.yaml: tokenization lists stages/losses/bco.py, which it doesn't run"]


def test_edges_are_those_of_the_design(nodes):
    edges = {node.name: set(node.upstream) for node in nodes}

    assert edges["normalization"] == {"demo_feedback", "base_model"}
    assert edges["density_ratio"] == {"tokenization", "prompt_embedding"}
    assert edges["training@bco"] == {"base_model", "tokenization", "reference_logprobs@base", "density_ratio"}
    assert edges["training@dpo"] == {"base_model", "tokenization", "reference_logprobs@base"}
    assert edges["training@kto"] == edges["training@dpo"] | {"mismatched_reference_logprobs@base"}
    assert edges["gate@bco"] == {"evaluation@bco"}
    assert "gate@bco" not in edges["report@bco"]


def test_stages_come_after_what_they_read(nodes):
    names = [node.name for node in nodes]

    assert all(names.index(other) < names.index(node.name) for node in nodes for other in node.upstream)


def test_the_truth_is_read_by_evaluations_and_by_methods_whose_reward_it_is(nodes):
    readers = {node.name for node in nodes if "data/demo/truth.json" in node.deps}
    evaluations = {node.name for node in nodes if node.name.startswith("evaluation@")}

    assert readers == evaluations | {"training@iterative_sft", "training@ppo"}


def test_nothing_switches_off_the_run_cache():
    text = (ROOT / "dvc.yaml").read_text()

    assert "persist" not in text
    assert "cache: false" not in text
    assert "always_changed" not in text
