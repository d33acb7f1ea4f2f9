"""Entries of dvc.yaml against the signatures of their stages, and what an edit of code makes run again."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.checks import edited_code, graph_problems
from pipelines.graph import read_graph
from stages.contracts.closure import ROOT
from stages.contracts.stage import CODE

INPUTS = {"encoder": "models/base"}


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


def changed(nodes, name, **fields):
    """The graph with other fields of one stage."""
    assert any(node.name == name for node in nodes)
    return [dataclasses.replace(node, **fields) if node.name == name else node for node in nodes]


def without(values, left_out):
    assert left_out in values
    return tuple(value for value in values if value != left_out)


def of(nodes, name):
    return next(node for node in nodes if node.name == name)


def test_the_graph_has_no_differences(nodes):
    assert graph_problems(nodes, INPUTS) == []


@pytest.mark.parametrize(
    ("stage", "field", "value", "problem"),
    [
        ("training@bco", "deps", "artifacts/tokens", "lacks artifacts/tokens in its deps"),
        ("training@bco", "deps", "artifacts/code/bco_training", "lacks artifacts/code/bco_training in its deps"),
        ("training@kto", "deps", "artifacts/rows/kto", "lacks artifacts/rows/kto in its deps"),
        ("evaluation@bco", "deps", "artifacts/code/evaluation", "lacks artifacts/code/evaluation in its deps"),
        ("normalization", "params", "normalization", "lacks normalization in its params"),
        ("training@dpo", "params", "training.dpo", "lacks training.dpo in its params"),
    ],
)
def test_what_is_missing_is_named(nodes, stage, field, value, problem):
    fields = {field: without(getattr(of(nodes, stage), field), value)}

    assert graph_problems(changed(nodes, stage, **fields), INPUTS) == [
        f"dvc.yaml: {stage} {problem}, which its command names"
    ]


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("gate@bco", "deps", "artifacts/completions"),
        ("tokenization", "deps", "artifacts/code/normalization"),
        ("reference_logprobs@base", "params", "tokenization"),
    ],
)
def test_what_is_too_much_is_named(nodes, stage, field, value):
    fields = {field: (*getattr(of(nodes, stage), field), value)}

    assert graph_problems(changed(nodes, stage, **fields), INPUTS) == [
        f"dvc.yaml: {stage} has {value} in its {field}, which its command doesn't name"
    ]


def test_metrics_and_plots_stand_where_dvc_shows_them(nodes):
    normalization = of(nodes, "normalization")

    problems = graph_problems(changed(nodes, "normalization", metrics=()), INPUTS)

    assert problems == [
        f"dvc.yaml: normalization has {normalization.metrics[0]} in its outs, which its command doesn't name",
        f"dvc.yaml: normalization lacks {normalization.metrics[0]} in its metrics, which its command names",
    ]


def test_flags_that_a_stage_has_not_and_needs_are_named(nodes):
    command = of(nodes, "tokenization").command
    place = command.index("--completions")
    words = (*command[:place], "--completion", *command[place + 1 :])

    assert graph_problems(changed(nodes, "tokenization", command=words), INPUTS) == [
        "dvc.yaml: tokenization gives --completion, which stages.tokenization doesn't take",
        "dvc.yaml: tokenization lacks --completions, which stages.tokenization needs",
    ]


def test_a_start_that_is_not_scored_is_named_with_what_to_do(nodes):
    """As with `training.bco.start_from: sft` and `references: [base]`."""
    rows = of(nodes, "bco_rows")
    base, sft = "artifacts/reference_logps/base", "artifacts/reference_logps/sft"
    fields = {
        "deps": tuple(sft if dep == base else dep for dep in rows.deps),
        "command": tuple(sft if word == base else word for word in rows.command),
    }

    (problem,) = graph_problems(changed(nodes, "bco_rows", **fields), INPUTS)

    assert problem == (
        "dvc.yaml: bco_rows depends on artifacts/reference_logps/sft, which no stage writes; add sft to `references` "
        "in params.yaml, so that what starts from it is scored"
    )


def test_a_path_of_inputs_may_be_watched_though_no_flag_names_it(nodes):
    stage = of(nodes, "prompt_embedding")
    more = changed(nodes, "prompt_embedding", deps=(*stage.deps, "encoders/mine"))

    assert graph_problems(more, {**INPUTS, "encoder": "encoders/mine"}) == []
    assert len(graph_problems(more, INPUTS)) == 1


def test_an_edit_is_told_by_the_stages_that_run_the_file(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.contracts.stage.CODE", tmp_path / CODE)
    monkeypatch.setattr("pipelines.checks.CODE", tmp_path / CODE)
    monkeypatch.setattr("pipelines.checks.SOURCE", ROOT / "stages")
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
    from stages.code import run

    run(source=ROOT / "stages", code=tmp_path / CODE)
    assert edited_code(nodes) == {}

    # As if the losses had been others when the stage `code` ran.
    for file in (tmp_path / CODE).iterdir():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join("0" * 32 + line[32:] if "losses/bco.py" in line else line for line in lines))

    assert edited_code(nodes) == {"training@bco": ["stages/losses/bco.py"]}


def test_without_code_files_nothing_is_told(nodes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.checks.SOURCE", ROOT / "stages")

    assert edited_code(nodes) == {}
    assert edited_code([node for node in nodes if node.name != "code"]) == {}
    assert not list(Path().glob("artifacts/*"))
