"""Choices of the demo beside another log, and lengths that a model can't hold, are named before a training."""

import json
from pathlib import Path

import pytest

from pipelines.graph import read_graph
from pipelines.leftovers import choice_problems, missing_inputs
from pipelines.params import check_params, load_params
from stages.contracts.closure import ROOT
from tests.models.models_on_disk import write_model

DEMO = load_params(ROOT / "params.yaml")
ROW = {"prompt": "Say hello to everybody in the room.", "completion": "Hello, everybody!", "label": True, "team": "a"}


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(20)))
    return path


def own(log, **sections):
    """params.yaml of the demo with another log, and other values in some sections."""
    values = DEMO.model_dump()
    for name, section in {"inputs": {}, **sections}.items():
        values[name] = {**values[name], **section}
    values["inputs"]["feedback"] = str(log)
    return check_params(values)


def clean(log, **sections):
    """The same without what the demo left."""
    gate = {"bco": {"minimums": {"auc": 0.5}}}
    return own(log, **{"evaluation": {"judge": "none", "slice_by": "team"}, "gate": gate, **sections})


def test_the_demo_itself_has_no_leftovers(nodes):
    assert choice_problems(DEMO, nodes) == []


def test_nothing_is_said_of_a_log_whose_choices_are_its_own(nodes, log):
    assert choice_problems(clean(log), nodes) == []


def test_judge_slice_and_limits_of_the_demo_are_named(nodes, log):
    assert choice_problems(own(log), nodes) == [
        "evaluation.judge: demo knows the answers of the demo's world alone; set it to none, or name a judge",
        "gate.bco.minimums: true_reward/gain is measured by a judge alone; take it out, or name a judge",
        (
            "evaluation.slice_by: expected a column of the log, found no 'topic' in its first 20 rows; name one of "
            "completion, label, prompt, team, or null"
        ),
    ]


def test_a_reward_of_the_demo_is_named_where_its_method_runs(nodes, log):
    (problem,) = choice_problems(clean(log, run={"methods": ["bco", "ppo"]}, gate={"bco": {}, "ppo": {}}), nodes)

    assert problem.startswith("training.ppo.reward: demo rewards the demo's answers alone")


def test_a_length_of_the_demo_is_named_where_rows_are_much_longer(nodes, log):
    row = {**ROW, "completion": "word " * 200}
    log.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))

    (problem,) = choice_problems(clean(log), nodes)

    assert problem.startswith("tokenization.max_length: 64 tokens hold no more than the start of most rows")


def test_a_slice_inside_of_objects_is_found(nodes, log):
    log.write_text(json.dumps({**ROW, "metadata": {"topic": "sums"}}) + "\n")

    assert choice_problems(clean(log, evaluation={"judge": "none", "slice_by": "topic"}), nodes) == []


def test_lengths_beyond_the_models_positions_are_named(nodes, log, tmp_path):
    write_model(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    where = {"inputs": {"base_model": str(tmp_path / "model")}, "base_model": {"source": "local"}}

    problems = choice_problems(clean(log, **where, tokenization={"max_length": 4096}), nodes)

    assert problems == [
        "tokenization.max_length: 4,096 tokens are more than the model has positions; set it to 100 or less",
        "evaluation.max_new_tokens: 128 tokens are more than the model has positions; set it to 100 or less",
    ]


def test_inputs_that_are_nowhere_are_named_and_those_that_dvc_has_are_not(nodes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = own(Path("data/feedback.jsonl"))
    # As in the graph of that params.yaml.
    reading = [node for node in nodes if node.name != "demo_feedback"]

    def problems():
        return list(missing_inputs(params, [*reading, reading[0].__class__("x", (), ("data/feedback.jsonl",), (), ())]))

    assert "inputs.feedback: expected a file or folder at data/feedback.jsonl, found nothing there" in problems()

    Path("data").mkdir()
    Path("data/feedback.jsonl.dvc").touch()
    assert not any("feedback" in problem for problem in problems())


def test_an_empty_list_of_limits_is_named_with_the_remedy():
    values = DEMO.model_dump()
    values["gate"]["bco"]["minimums"] = None

    with pytest.raises(ValueError, match=r"gate\.bco\.minimums: expected limits .* write `minimums: \{\}` for none"):
        check_params(values)
