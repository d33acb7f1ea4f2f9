"""Bootstrap intervals over groups of rows."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from stages.measures.intervals import (
    Interval,
    bootstrap_auc,
    bootstrap_difference,
    bootstrap_mean,
    percentile_interval,
    resampled_sums,
)


def test_the_value_is_the_mean_over_rows_whatever_the_groups():
    # groups of 3 and 1 row: (1 + 2 + 3 + 10) / 4 = 4
    assert bootstrap_mean([1.0, 2.0, 3.0, 10.0], ["a", "a", "a", "b"]).value == 4.0


def test_one_group_has_an_interval_without_width():
    assert bootstrap_mean([1.0, 2.0, 3.0], ["a", "a", "a"]) == Interval(2.0, 2.0, 2.0)


def test_rows_that_repeat_within_a_group_narrow_nothing():
    values = np.random.default_rng(0).normal(size=50)
    single = bootstrap_mean(values, [f"g{i}" for i in range(50)])

    repeated = bootstrap_mean(np.repeat(values, 20), [f"g{i}" for i in range(50) for _ in range(20)])

    assert repeated == pytest.approx(single)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        effects = random.normal(size=40)
        values = np.repeat(effects, 3) + random.normal(size=120)
        interval = bootstrap_mean(values, np.repeat(np.arange(40), 3), seed=trial, num_resamples=300)
        hits += interval.low <= 0 <= interval.high

    assert 0.88 <= hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_blocks_change_nothing(monkeypatch):
    values, groups = np.arange(30.0), np.arange(30) // 2
    expected = bootstrap_mean(values, groups, seed=3)

    monkeypatch.setattr("stages.measures.intervals._BLOCK_ENTRIES", 64)

    assert bootstrap_mean(values, groups, seed=3) == expected
    assert bootstrap_mean(values, groups, seed=4) != expected


def test_auc_is_that_of_sklearn_with_ties_counted_half():
    random = np.random.default_rng(2)
    scores, labels = random.integers(0, 8, size=200), random.random(200) < 0.4

    interval = bootstrap_auc(scores, labels, np.arange(200))

    assert interval.value == pytest.approx(roc_auc_score(labels, scores))
    assert interval.low < interval.value < interval.high


def test_resamples_of_one_class_are_left_out_of_the_auc():
    interval = bootstrap_auc([0.0, 1.0], [False, True], ["a", "b"])

    assert interval == Interval(1.0, 1.0, 1.0)


def test_difference_is_between_the_means_of_the_classes():
    # positive rows 3 and 5, negative rows 1 and 1: 4 - 1 = 3
    interval = bootstrap_difference([3.0, 5.0, 1.0, 1.0], [True, True, False, False], ["a", "b", "c", "d"])

    assert interval.value == 3.0
    assert (interval.low, interval.high) == (2.0, 4.0)


def test_resampled_sums_add_whole_groups():
    sums = resampled_sums(np.array([[1.0, 1.0], [2.0, 1.0], [5.0, 1.0]]), ["a", "a", "b"], num_resamples=100)

    # two groups drawn twice: a a, a b or b b
    assert {tuple(row) for row in sums.tolist()} == {(6.0, 4.0), (8.0, 3.0), (10.0, 2.0)}


def test_resamples_that_say_nothing_leave_the_value_alone():
    assert percentile_interval(1.5, np.array([np.nan])) == Interval(1.5, 1.5, 1.5)


@pytest.mark.parametrize("statistic", [bootstrap_auc, bootstrap_difference])
def test_one_class_is_refused(statistic):
    with pytest.raises(ValueError, match="rows of both classes, found 2 scores and 2 positive of 2 labels"):
        statistic([1.0, 2.0], [True, True], ["a", "b"])


@pytest.mark.parametrize(("values", "groups"), [([], []), ([1.0, 2.0], ["a"])])
def test_each_row_needs_a_group(values, groups):
    with pytest.raises(ValueError, match="at least one row and a group for each"):
        bootstrap_mean(values, groups)
