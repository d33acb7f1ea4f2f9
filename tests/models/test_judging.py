"""Judges by name, and what they are given to read."""

import math

import pytest

from stages.models.judging import judge_all, named_judge


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
    assert named_judge("none") is None


def test_the_demos_judge_knows_the_right_answer_and_needs_no_file():
    judge = named_judge("demo")

    assert judge("What are the opposites of hot, big and fast?", "cold, small, slow") == 1.0
    assert judge("What are the opposites of hot, big and fast?", "cold, big, up") == pytest.approx(1 / 3)


def test_a_named_function_scores_each_completion_of_each_prompt():
    judge = named_judge(f"{__name__}:by_length")

    assert judge_all(judge, ["a", "bb"], [["x", "xyz"], ["", "x"]], name="by_length") == [[0.0, 2.0], [-2.0, -1.0]]


def test_a_function_that_does_not_say_what_it_takes_is_taken():
    assert named_judge("builtins:max") is max


def failing(prompt, completion):
    raise RuntimeError("the service is away")


def test_a_judge_that_raises_is_named_with_the_prompt():
    judge = named_judge(f"{__name__}:failing")

    with pytest.raises(ValueError, match="judge away, at prompt 2: .* raised RuntimeError: the service is away"):
        judge_all(judge, ["a", "b"], [[], ["x"]], name="away")


@pytest.mark.parametrize("name", ["broken", "wordy"])
def test_a_judge_that_gives_no_finite_number_is_named(name):
    judge = named_judge(f"{__name__}:{name}")

    with pytest.raises(ValueError, match=f"judge {name}: expected a finite number"):
        judge_all(judge, ["a"], [["x"]], name=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt", "none, demo or package.module:function, found 'gpt'"),
        ("no_such_package:judge", "no_such_package"),
        (f"{__name__}:missing", "missing"),
        (f"{__name__}:NOT_A_FUNCTION", "found a int"),
        (f"{__name__}:of_the_answer_alone", "expected a function of prompt, completion .* too many positional"),
    ],
)
def test_a_name_that_leads_to_no_judge_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        named_judge(name)
