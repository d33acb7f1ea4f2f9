"""Metrics of reward models against numbers worked by hand."""

import math

import numpy as np
import pytest

from stages.measures.preference_metrics import Resampling
from stages.measures.reward_metrics import (
    ScoredPairs,
    accuracy_by_length,
    length_metrics,
    metrics_by_slice,
    pair_calibration,
    pair_metrics,
    pair_summary,
)

RESAMPLING = Resampling(200, 0)


def scored(leads, chosen_lengths=None, rejected_lengths=None, prompts=None):
    number = len(leads)
    return ScoredPairs(
        np.array(prompts or [f"prompt{i}" for i in range(number)]),
        np.array(leads, dtype=float),
        np.zeros(number),
        np.array(chosen_lengths or [3] * number),
        np.array(rejected_lengths or [3] * number),
    )


def test_matches_numbers_worked_by_hand():
    # wins 1, 0 and half; losses log(1 + e^-lead); Brier (1 - sigmoid(lead))^2
    metrics = pair_metrics(scored([2.0, -1.0, 0.0]), RESAMPLING)

    assert metrics["accuracy"].value == pytest.approx(1.5 / 3)
    assert metrics["margin"].value == pytest.approx(1 / 3)
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log(2)]
    assert metrics["loss"].value == pytest.approx(sum(losses) / 3)
    brier = [(1 / (1 + math.exp(2))) ** 2, (1 / (1 + math.exp(-1))) ** 2, 0.25]
    assert metrics["brier"].value == pytest.approx(sum(brier) / 3)


def test_the_interval_of_the_accuracy_draws_prompts_and_not_pairs():
    # Ten pairs of one prompt say no more than one pair does.
    leads = [1.0] * 10 + [-1.0] * 10
    one_each = pair_metrics(scored(leads), RESAMPLING)["accuracy"]
    two_prompts = pair_metrics(scored(leads, prompts=["a"] * 10 + ["b"] * 10), RESAMPLING)["accuracy"]

    assert one_each.value == two_prompts.value == 0.5
    assert 0.2 < one_each.low < one_each.high < 0.8
    assert (two_prompts.low, two_prompts.high) == (0.0, 1.0)


def test_a_model_that_always_takes_the_longer_completion_is_shown_to():
    # People chose the longer one in 1 of 4 pairs that differ in length; the fifth doesn't differ.
    chosen, rejected = [9, 2, 3, 4, 5], [1, 6, 8, 7, 5]
    leads = [chosen[i] - rejected[i] for i in range(4)] + [1.0]

    metrics = {name: found.value for name, found in length_metrics(scored(leads, chosen, rejected), RESAMPLING).items()}

    assert metrics == {
        "length/chosen": pytest.approx(23 / 5),
        "length/rejected": pytest.approx(27 / 5),
        "length/people": 0.25,
        "length/model": 1.0,
        "length/bias": 0.75,
        "length/accuracy_longer_chosen": 1.0,
        "length/accuracy_shorter_chosen": 0.0,
        "length/correlation": pytest.approx(1.0),
    }


def test_a_model_that_agrees_with_people_has_no_length_bias():
    metrics = length_metrics(scored([1.0, 2.0, 3.0], [9, 2, 3], [1, 6, 8]), RESAMPLING)

    assert metrics["length/bias"] == (0.0, 0.0, 0.0)
    assert metrics["length/model"].value == metrics["length/people"].value == pytest.approx(1 / 3)


def test_the_correlation_is_that_of_numpy():
    random = np.random.default_rng(0)
    chosen, rejected = random.integers(1, 40, 50), random.integers(1, 40, 50)
    leads = 1000 + random.normal(size=50) + 0.05 * (chosen - rejected)
    pairs = scored(leads, chosen.tolist(), rejected.tolist())
    differs = chosen != rejected

    found = length_metrics(pairs, RESAMPLING)["length/correlation"]

    assert found.value == pytest.approx(np.corrcoef(leads[differs], (chosen - rejected)[differs])[0, 1])
    assert found.low < found.value < found.high


def test_pairs_of_equal_length_leave_out_what_they_dont_show():
    assert set(length_metrics(scored([1.0, 2.0]), RESAMPLING)) == {"length/chosen", "length/rejected"}
    constant = length_metrics(scored([1.0, 1.0], [4, 5], [2, 2]), RESAMPLING)
    assert "length/correlation" not in constant
    assert "length/accuracy_shorter_chosen" not in constant


def test_calibration_compares_what_the_model_says_with_how_often_it_is_so():
    # sigmoid(log 3) is 3/4: 3 of 4 such leads are right. Read the other way round, 1/4 and 1 of 4.
    lead = math.log(3)

    bins = pair_calibration(scored([lead, lead, lead, -lead]), RESAMPLING, num_bins=2)

    shown = [(found["predicted"], found["observed"], found["rows"]) for found in bins]
    assert shown == [(pytest.approx(0.25), 0.25, 4), (pytest.approx(0.75), 0.75, 4)]


def test_a_model_too_sure_of_itself_has_a_calibration_error():
    lead = math.log(99)
    pairs = scored([lead, lead, lead, -lead])

    summary = pair_summary(pairs, pair_calibration(pairs, RESAMPLING, num_bins=2), RESAMPLING)

    assert summary["ece"] == pytest.approx(0.99 - 0.75)
    assert summary["counts"] == {"pairs": 4, "prompts": 4, "ties": 0}
    assert summary["score"]["mean"] == pytest.approx(lead / 4, rel=1e-5)


def test_accuracy_by_length_covers_every_pair_once():
    chosen, rejected = [1, 2, 3, 9, 8, 7], [7, 7, 7, 1, 1, 1]

    table = accuracy_by_length(scored([1, 1, -1, 1, 1, 1], chosen, rejected), RESAMPLING, num_bins=2)

    shown = [(row["difference_low"], row["difference_high"], row["accuracy"], row["pairs"]) for row in table]
    assert shown == [(-6, -4, pytest.approx(2 / 3, rel=1e-5), 3), (6, 8, 1.0, 3)]


def test_slices_hold_their_own_pairs():
    slices = {"prompt0": "a", "prompt1": None, "prompt2": "a"}

    table = metrics_by_slice(scored([1.0, -1.0, 1.0]), slices, RESAMPLING)

    accuracies = {row["slice"]: (row["value"], row["pairs"]) for row in table if row["metric"] == "accuracy"}
    assert accuracies == {"(none)": (0.0, 1), "a": (1.0, 2)}
