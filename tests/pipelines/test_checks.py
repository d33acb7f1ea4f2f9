"""Entries of dvc.yaml against the signatures of their stages, and what an edit of code makes run again."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.checks import edited_code, graph_problems
from pipelines.graph import read_graph
from pipelines.params import check_params, load_params
from stages.contracts.closure import ROOT
from stages.contracts.stage import CODE

PARAMS = load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


def changed(nodes, name, **fields):
    """The graph with other fields of one stage."""
    assert any(node.name == name for node in nodes)
    return [dataclasses.replace(node, **fields) if node.name == name else node for node in nodes]


def starting_from_sft(nodes, *names):
    """The graph with what the stages read of `base` read of `sft`."""
    for name in names:
        node = of(nodes, name)
        fields = {
            field: tuple(
                word.replace("models/base", "models/sft").replace("reference_logps/base", "reference_logps/sft")
                for word in getattr(node, field)
            )
            for field in ("deps", "command")
        }
        nodes = changed(nodes, name, **fields)
    return nodes


def with_params(**sections):
    """params.yaml with other values in some of its sections."""
    values = PARAMS.model_dump()
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return check_params(values)


def without(values, left_out):
    assert left_out in values
    return tuple(value for value in values if value != left_out)


def of(nodes, name):
    return next(node for node in nodes if node.name == name)


def test_the_graph_has_no_differences(nodes):
    assert graph_problems(nodes, PARAMS) == []


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

    assert graph_problems(changed(nodes, stage, **fields), PARAMS) == [f"dvc.yaml: {stage} {problem}, which it needs"]


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

    assert graph_problems(changed(nodes, stage, **fields), PARAMS) == [
        f"dvc.yaml: {stage} has {value} in its {field}, which it has no use for"
    ]


def test_metrics_and_plots_stand_where_dvc_shows_them(nodes):
    normalization = of(nodes, "normalization")

    problems = graph_problems(changed(nodes, "normalization", metrics=()), PARAMS)

    assert problems == [
        f"dvc.yaml: normalization has {normalization.metrics[0]} in its outs, which it has no use for",
        f"dvc.yaml: normalization lacks {normalization.metrics[0]} in its metrics, which it needs",
    ]


def test_flags_that_a_stage_has_not_and_needs_are_named(nodes):
    command = of(nodes, "tokenization").command
    place = command.index("--completions")
    words = (*command[:place], "--completion", *command[place + 1 :])

    assert graph_problems(changed(nodes, "tokenization", command=words), PARAMS) == [
        "dvc.yaml: tokenization gives --completion, which stages.tokenization doesn't take",
        "dvc.yaml: tokenization lacks --completions, which stages.tokenization needs",
    ]


def test_a_start_that_is_not_scored_is_named_with_what_to_do(nodes):
    """As with `training.bco.start_from: sft` and `references: [base]`."""
    (problem,) = graph_problems(starting_from_sft(nodes, "bco_rows", "training@bco"), PARAMS)

    assert problem == (
        "dvc.yaml: bco_rows depends on artifacts/reference_logps/sft, which no stage writes; add sft to `references` "
        "in params.yaml, so that what starts from it is scored"
    )


def test_a_path_of_inputs_may_be_watched_though_no_flag_names_it(nodes):
    stage = of(nodes, "prompt_embedding")
    more = changed(nodes, "prompt_embedding", deps=(*stage.deps, "encoders/mine"))

    assert graph_problems(more, with_params(inputs={"encoder": "encoders/mine"})) == []
    assert len(graph_problems(more, PARAMS)) == 1


@pytest.mark.parametrize(
    ("stage", "old", "new", "problem"),
    [
        ("training@kto", "kto", "bco", "trains training.kto by bco, which params.yaml has by kto"),
        ("training@bco", "bco", "bcoo", "depends on artifacts/code/bcoo_training, and no stage or method is called so"),
    ],
)
def test_a_wrong_method_of_an_entry_is_named(nodes, stage, old, new, problem):
    node = of(nodes, stage)
    place = node.command.index("--method") + 1
    fields = {
        "command": (*node.command[:place], new, *node.command[place + 1 :]),
        "deps": tuple(dep.replace(f"code/{old}_", f"code/{new}_") for dep in node.deps),
    }

    assert f"dvc.yaml: {stage} {problem}" in graph_problems(changed(nodes, stage, **fields), PARAMS)


def test_rows_scored_under_another_model_than_the_start_are_named(nodes):
    (problem,) = graph_problems(starting_from_sft(nodes, "training@bco"), PARAMS)

    assert problem == (
        "dvc.yaml: training@bco starts from models/sft, and bco_rows reads log-probabilities of another model, "
        "artifacts/reference_logps/base"
    )


def test_choices_that_the_graph_doesnt_serve_are_named(nodes):
    training = {"ppo": {**PARAMS.training.ppo.model_dump(), "reward": "model"}}
    rows = {"reward": {"margin_column": "better_by"}}

    assert graph_problems(nodes, with_params(training=training, rows=rows)) == [
        "dvc.yaml: reward_rows lacks --completions, from which rows.reward.margin_column is read",
        "dvc.yaml: ppo_training lacks --reward-models, and training.ppo.reward is model; they go together",
    ]


def test_origins_of_answers_go_with_an_entry_that_reads_them(nodes):
    params = with_params(rows={"bco": {"origin_column": "model"}})
    rows, base = of(nodes, "bco_rows"), of(nodes, "reference_logprobs@base")
    scored = [
        *nodes,
        dataclasses.replace(
            base,
            name="reference_logprobs@sft",
            command=tuple(word.replace("/base", "/sft") for word in base.command),
            deps=tuple(dep.replace("models/base", "models/sft") for dep in base.deps),
            outs=("artifacts/reference_logps/sft",),
        ),
    ]
    said = {"command": (*rows.command, "--params", "rows.bco"), "params": ("rows.bco",)}
    whole = {
        "command": (
            *said["command"], "--completions", "artifacts/completions",
            "--origin-reference-logps", "artifacts/reference_logps/sft",
        ),
        "params": ("rows.bco",),
        "deps": (*rows.deps, "artifacts/completions", "artifacts/reference_logps/sft"),
    }  # fmt: skip

    assert graph_problems(scored, params) == ["dvc.yaml: bco_rows lacks --params rows.bco, which params.yaml sets"]
    assert graph_problems(changed(scored, "bco_rows", **said), params) == [
        "dvc.yaml: bco_rows lacks --completions, from which rows.bco.origin_column is read",
        "dvc.yaml: bco_rows lacks --origin-reference-logps, and rows.bco has an origin_column; they go together",
    ]
    assert graph_problems(changed(scored, "bco_rows", **whole), params) == []
    assert graph_problems(changed(scored, "bco_rows", **whole), PARAMS) == [
        "dvc.yaml: bco_rows gives --origin-reference-logps, and rows.bco has no origin_column; they go together"
    ]


def test_a_stage_that_is_none_is_named_with_the_nearest(nodes):
    command = tuple(
        word.replace("tokenization", "tokenisation") if "stages." in word else word
        for word in of(nodes, "tokenization").command
    )

    assert graph_problems(changed(nodes, "tokenization", command=command), PARAMS) == [
        "dvc.yaml: tokenization runs stages.tokenisation, and there is no such stage; did you mean stages.tokenization?"
    ]


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
