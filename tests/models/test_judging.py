"""Judges by name, and what they are given to read."""

import json
import math

import pytest

from stages.demo.world import describe_truth, make_world
from stages.models.judging import judge_all, named_judge, user_text


def by_length(prompt, completion):
    return len(completion) - len(prompt)


def broken(prompt, completion):
    return math.nan


def wordy(prompt, completion):
    return "very good"


def of_the_answer_alone(completion):
    return 1.0


NOT_A_FUNCTION = 3


def test_none_names_no_judge():
    assert named_judge("none", truth=None) is None


def test_the_demos_judge_knows_the_right_answer(tmp_path):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(describe_truth("rater_bias", make_world("rater_bias", seed=0))))

    judge = named_judge("demo", truth=truth)

    assert judge("What are the opposites of hot, big and fast?", "cold, small, slow") == 1.0
    assert judge("What are the opposites of hot, big and fast?", "cold, big, up") == pytest.approx(1 / 3)


def test_a_named_function_scores_each_completion_of_each_prompt():
    judge = named_judge(f"{__name__}:by_length", truth=None)

    assert judge_all(judge, ["a", "bb"], [["x", "xyz"], ["", "x"]], name="by_length") == [[0.0, 2.0], [-2.0, -1.0]]


def test_a_function_that_does_not_say_what_it_takes_is_taken():
    assert named_judge("builtins:max", truth=None) is max


@pytest.mark.parametrize("name", ["broken", "wordy"])
def test_a_judge_that_gives_no_finite_number_is_named(name):
    judge = named_judge(f"{__name__}:{name}", truth=None)

    with pytest.raises(ValueError, match=f"judge {name}: expected a finite number"):
        judge_all(judge, ["a"], [["x"]], name=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo", "truth"),
        ("gpt", "none, demo or package.module:function, found 'gpt'"),
        ("no_such_package:judge", "no_such_package"),
        (f"{__name__}:missing", "missing"),
        (f"{__name__}:NOT_A_FUNCTION", "found a int"),
        (f"{__name__}:of_the_answer_alone", "expected a function of prompt, completion .* too many positional"),
    ],
)
def test_a_name_that_leads_to_no_judge_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        named_judge(name, truth=None)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain text", "plain text"),
        ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "b"}], "first"),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "text", "text": "two"}]}],
            "part\ntwo",
        ),
        ([{"role": "system", "content": "no user here"}], "no user here"),
        ([{"role": "user", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_judge_reads_what_the_user_wrote_last(prompt, expected):
    assert user_text(json.dumps({"prompt": prompt, "completion": "x"})) == expected
