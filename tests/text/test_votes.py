"""Votes: what is read as up and down, and what is refused."""

import numpy as np
import pytest

from stages.text.reasons import RejectedRowError
from stages.text.votes import parse_vote, rating_of


@pytest.mark.parametrize(
    "value",
    [True, 1, 1.0, np.bool_(True), np.int64(1), np.float32(1), "up", "Thumbs Up", "thumbs-up", "YES", "+1", "1"],
)
def test_reads_votes_for(value):
    assert parse_vote(value) is True


@pytest.mark.parametrize(
    "value",
    [False, 0, -1, np.bool_(False), np.array(0), "down", "thumbs_down", " no ", "-1", "false", "\N{THUMBS DOWN SIGN}"],
)
def test_reads_votes_against(value):
    assert parse_vote(value) is False


@pytest.mark.parametrize("value", ["maybe", [1, 0], {"up": 1}, float("inf"), object(), "5/5", "1 star"])
def test_refuses_what_is_no_vote(value):
    with pytest.raises(RejectedRowError, match="unknown_label"):
        parse_vote(value)


@pytest.mark.parametrize("value", [None, "", float("nan"), np.float64("nan")])
def test_tells_no_vote_from_one_that_cannot_be_read(value):
    with pytest.raises(RejectedRowError, match=r"no_label.*layout: demonstrations"):
        parse_vote(value)


@pytest.mark.parametrize("value", [4, "2.5", -2, np.int32(3)])
def test_a_rating_without_threshold_is_refused_and_told_of_it(value):
    with pytest.raises(RejectedRowError, match=r"unknown_label.*label_threshold"):
        parse_vote(value)


@pytest.mark.parametrize(
    ("value", "number", "scale"),
    [
        ("4 stars", 4, ""),
        ("1 Stern", 1, ""),
        ("4\N{BLACK STAR}", 4, ""),
        ("\N{BLACK STAR}" * 4 + "\N{WHITE STAR}", 4, "of 5"),
        ("\N{WHITE MEDIUM STAR}\N{VARIATION SELECTOR-16}" * 3, 3, ""),
        ("\N{WHITE STAR}" * 5, 0, "of 5"),
        ("4/5", 4, "of 5"),
        ("3.5 out of 10 points", 3.5, "of 10"),
        ("4 von 5 Sternen", 4, "of 5"),
        ("80 %", 80, "%"),
        ("62,5%", 62.5, "%"),
        ("5 - very good", 5, ""),
        ("(2) poor", 2, ""),
        ("3,5", 3.5, None),
        ("3.5", 3.5, None),
        (["4"], 4, None),
    ],
)
def test_numbers_are_ratings_however_they_are_written(value, number, scale):
    assert rating_of(value) == (number, scale)
    assert parse_vote(value, threshold=number) is True
    assert parse_vote(value, threshold=number + 0.1) is False
    with pytest.raises(RejectedRowError, match="label_threshold"):
        parse_vote(value)


@pytest.mark.parametrize("value", ["1,000", "4 stars or 5", "2025-03-01", "1.2.3", "4//5", "stars", "", "5 - 3", True])
def test_what_only_holds_a_number_is_no_rating(value):
    assert rating_of(value) is None


def test_the_threshold_is_the_smallest_desired_rating():
    assert [parse_vote(value, threshold=4) for value in (5, 4, "4.0", 3.9, 1, 0)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_threshold_leaves_truth_values_alone():
    assert parse_vote(True, threshold=4)


@pytest.mark.parametrize("value", [3, "3", 3.0, "skip"])
def test_ignored_votes_are_refused_as_such(value):
    with pytest.raises(RejectedRowError, match="ignored_label"):
        parse_vote(value, threshold=4, ignored=[3, "skip"])


def test_ignoring_a_number_ignores_no_truth_value():
    assert parse_vote(False, ignored=[0]) is False
