"""Stage `demo_feedback`: what it writes, and that a seed fixes every byte."""

import json

import pytest
from pydantic import ValidationError

from stages.contracts.files import tree_digest
from stages.demo.world import demo_judge
from stages.demo_feedback import DemoFeedbackParams, run

SMALL = {"rows": 200, "demonstrations": 100, "dirty_rows": 12}


def write(folder, **params):
    folder.mkdir()
    run(
        feedback=folder / "feedback.jsonl",
        demonstrations=folder / "demonstrations.jsonl",
        truth=folder / "truth.json",
        params=DemoFeedbackParams(**{**SMALL, **params}),
    )
    return folder


def test_writes_votes_demonstrations_and_the_truth(tmp_path, capsys):
    folder = write(tmp_path / "demo")

    lines = (folder / "feedback.jsonl").read_text().splitlines()
    assert len(lines) == 212
    first = json.loads(lines[0])
    assert set(first) == {"prompt", "completion", "label", "topic", "user", "time", "model"}
    assert first["prompt"][0]["role"] == "user"
    assert len((folder / "demonstrations.jsonl").read_text().splitlines()) == 100
    assert 0 <= demo_judge(first["prompt"][0]["content"], first["completion"][0]["content"]) <= 1
    assert json.loads((folder / "truth.json").read_text())["dirt"]["empty_completion"] == 2
    assert "212 lines, 12 of them dirty" in capsys.readouterr().out


@pytest.mark.parametrize("world", ["rater_bias", "competence"])
def test_equal_seeds_give_equal_bytes_and_other_seeds_others(tmp_path, world):
    first, again, other = (
        tree_digest(write(tmp_path / name, world=world, seed=seed)) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )

    assert first == again != other


def test_more_votes_leave_those_that_were_there(tmp_path):
    few, many = write(tmp_path / "few", dirty_rows=0), write(tmp_path / "many", rows=250, dirty_rows=0)

    assert (many / "feedback.jsonl").read_text().startswith((few / "feedback.jsonl").read_text())
    assert (many / "demonstrations.jsonl").read_bytes() == (few / "demonstrations.jsonl").read_bytes()


def test_an_unknown_world_is_refused():
    with pytest.raises(ValidationError, match="world"):
        DemoFeedbackParams(world="other")
