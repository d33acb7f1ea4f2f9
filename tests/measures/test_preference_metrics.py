"""What evaluation measures, against numbers worked by hand."""

import math

import numpy as np
import pytest

from stages.measures.preference_metrics import (
    NO_SLICE,
    OTHER_SLICES,
    Resampling,
    SampledPrompts,
    ScoredRows,
    calibration_bins,
    calibration_error,
    compare_scores,
    metrics_by_slice,
    nested,
    reward_metrics,
    sampling_metrics,
    sigmoid,
    summary,
)

RESAMPLING = Resampling(num_resamples=200, seed=0)


def rows(rewards, labels, *, shift=0.0, prompts=None, pairs=None):
    rewards = np.array(rewards, dtype=np.float64)
    prompt_ids = np.array(prompts or [f"p{i}" for i in range(len(rewards))])
    pair_ids = pairs or [None] * len(rewards)
    return ScoredRows(prompt_ids, pair_ids, np.array(labels, dtype=bool), rewards, rewards - shift)


def test_accuracy_margin_auc_and_brier_match_numbers_worked_by_hand():
    # logits = rewards - 1 = [2, -1, -0.5, 1]; sides right for rows 0 and 2: accuracy 1/2.
    # margin: (3 + 0) / 2 - (0.5 + 2) / 2 = 0.25. Pairs (desired, undesired): 3 > 0.5, 3 > 2, 0 < 0.5, 0 < 2: AUC 1/2.
    found = reward_metrics(rows([3.0, 0.0, 0.5, 2.0], [True, True, False, False], shift=1.0), RESAMPLING)

    def squared(logit, label):
        return (1 / (1 + math.exp(-logit)) - label) ** 2

    brier = (squared(2.0, 1) + squared(-1.0, 1) + squared(-0.5, 0) + squared(1.0, 0)) / 4
    assert found["accuracy"].value == 0.5
    assert found["margin"].value == pytest.approx(0.25)
    assert found["auc"].value == 0.5
    assert found["brier"].value == pytest.approx(brier)
    assert "pair_accuracy" not in found


def test_pairs_count_when_both_rows_are_there_and_ties_half():
    found = reward_metrics(
        rows(
            [2.0, 1.0, 1.0, 1.0, 9.0],
            [True, False, True, False, True],
            prompts=["a", "a", "b", "b", "c"],
            pairs=["x", "x", "y", "y", "z"],
        ),
        RESAMPLING,
    )

    assert found["pair_accuracy"].value == 0.75


def test_rows_of_one_class_have_no_auc_and_no_rows_have_no_metrics():
    assert set(reward_metrics(rows([1.0, 2.0], [True, True]), RESAMPLING)) == {"accuracy", "brier"}
    assert reward_metrics(rows([], []), RESAMPLING) == {}
    assert sampling_metrics(SampledPrompts(np.array([], dtype=str), {"kl": np.zeros(0)}), RESAMPLING) == {}


def test_intervals_hold_the_value_and_shrink_with_more_prompts():
    random = np.random.default_rng(0)

    def width(count):
        labels = random.random(count) < 0.5
        interval = reward_metrics(rows(random.normal(size=count) + labels, labels), RESAMPLING)["auc"]
        assert interval.low < interval.value < interval.high
        return interval.high - interval.low

    assert width(1000) < 0.5 * width(50)


def test_gain_and_win_rate_match_numbers_worked_by_hand():
    # Prompt 0: 1 beats 0 and ties with 1, 0 ties with 0 and loses to 1: (1 + 0.5 + 0.5 + 0) / 4 = 0.5.
    # Prompt 1: both samples beat both: 1.
    found = compare_scores([[1.0, 0.0], [2.0, 2.0]], [[0.0, 1.0], [0.0, 1.0]])

    assert found["win_rate"].tolist() == [0.5, 1.0]
    assert found["true_reward/policy"].tolist() == [0.5, 2.0]
    assert found["true_reward/gain"].tolist() == [0.0, 1.5]


def test_calibration_puts_rows_into_the_bin_of_their_probability():
    # sigmoid(+-4) is 0.982 and 0.018; of three rows called likely, two are desired.
    bins = calibration_bins(rows([4.0, 4.0, 4.0, -4.0], [True, True, False, False]), RESAMPLING, num_bins=10)

    low, high = bins
    assert (low["bin_low"], low["bin_high"], low["rows"], low["observed"]) == (0.0, 0.1, 1, 0.0)
    assert high["observed"] == pytest.approx(2 / 3)
    assert high["predicted"] == pytest.approx(1 / (1 + math.exp(-4)))
    p = 1 / (1 + math.exp(-4))
    assert calibration_error(bins) == pytest.approx((3 * (p - 2 / 3) + (1 - p)) / 4)


def test_a_probability_of_one_stands_in_the_last_bin():
    assert calibration_bins(rows([1e9], [True]), RESAMPLING, num_bins=4)[0]["bin_high"] == 1.0
    assert sigmoid(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]


def test_small_slices_stand_together_where_there_are_too_many():
    prompts = SampledPrompts(np.array(["p0", "p1", "p2", "p3", "p4"]), {"kl": np.arange(5.0)})
    slices = {"p0": "a", "p1": "a", "p2": "b", "p3": "c", "p4": None}

    table = metrics_by_slice(rows([], []), prompts, slices, RESAMPLING, max_slices=2)

    assert {row["slice"]: (row["value"], row["prompts"]) for row in table} == {"a": (0.5, 2), OTHER_SLICES: (3.0, 3)}
    all_slices = metrics_by_slice(rows([], []), prompts, slices, RESAMPLING, max_slices=4)
    assert [row["slice"] for row in all_slices] == [NO_SLICE, "a", "b", "c"]


def test_metrics_nest_by_their_path_and_come_with_counts():
    prompts = SampledPrompts(np.array(["p0", "p1"]), {"length/policy": np.array([1.0, 3.0])})
    scored = rows([1.0, -1.0], [True, False])
    bins = calibration_bins(scored, RESAMPLING, num_bins=2)

    found = summary(scored, prompts, bins, RESAMPLING)

    assert found["length"]["policy"]["value"] == 2.0
    assert found["counts"] == {"rows": 2, "desired": 1, "undesired": 1, "sampled_prompts": 2}
    assert found["ece"] == pytest.approx(1 / (1 + math.e), abs=1e-6)
    assert nested({}) == {}
