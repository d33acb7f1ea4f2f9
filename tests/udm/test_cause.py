"""What a shift is put down to."""

import numpy as np
import pytest

from stages.measures.intervals import Interval
from stages.udm.cause import Thresholds, diagnose, group_rows, rank_correlation

THRESHOLDS = Thresholds(
    competence=0.8, rater_bias=0.6, min_auc=0.55, min_groups=5, min_effective_share=0.3, min_prompts=50
)
SHIFT = Interval(0.8, 0.75, 0.85)


def verdict(correlation, *, auc=SHIFT, effective_share=0.5, num_groups=8, num_prompts=50):
    return diagnose(
        auc=auc,
        effective_share=effective_share,
        correlation=correlation,
        num_groups=num_groups,
        num_prompts=num_prompts,
        thresholds=THRESHOLDS,
    )


def test_where_unpopular_groups_are_unlikely_answers_the_model_is_at_fault():
    found = verdict(Interval(0.97, 0.9, 1.0))

    assert (found.verdict, found.recommendation) == ("competence", "none")
    assert "0.97 [0.90, 1.00]" in found.reason


def test_where_they_are_not_the_raters_are():
    found = verdict(Interval(0.1, -0.4, 0.5))

    assert (found.verdict, found.recommendation) == ("rater_bias", "udm")
    assert found.fitting == ("udm", "offset", "deployment")


def test_an_offset_is_recommended_where_weights_would_leave_little():
    found = verdict(Interval(0.1, -0.4, 0.5), effective_share=0.1)

    assert found.recommendation == "offset"
    assert "10% of the undesired rows" in found.reason


@pytest.mark.parametrize("correlation", [Interval(0.7, 0.65, 0.75), Interval(0.85, 0.3, 0.95), Interval(0.5, 0.1, 0.9)])
def test_between_the_two_nothing_is_claimed(correlation):
    found = verdict(correlation)

    assert (found.verdict, found.recommendation) == ("unsure", "none")


def test_below_a_number_of_prompts_nothing_is_told_whatever_the_numbers_say():
    found = verdict(Interval(0.97, 0.9, 1.0), num_prompts=49)

    assert (found.verdict, found.recommendation) == ("cannot_tell", "none")
    assert "49 prompts have a row of the rarer label" in found.reason


@pytest.mark.parametrize("auc", [Interval(0.54, 0.52, 0.56), Interval(0.6, 0.49, 0.7)])
def test_without_a_shift_there_is_nothing_to_correct(auc):
    assert verdict(Interval(0.1, -0.4, 0.5), auc=auc).verdict == "no_shift"


@pytest.mark.parametrize(("correlation", "num_groups"), [(None, 8), (Interval(1.0, 1.0, 1.0), 4)])
def test_too_few_groups_say_nothing(correlation, num_groups):
    found = verdict(correlation, num_groups=num_groups)

    assert found.verdict == "unsure"
    assert "topic_column" in found.reason


def test_groups_hold_rates_and_means_and_small_ones_are_left_out():
    labels, logps = np.array([True, False, True, True]), np.array([-1.0, -3.0, -5.0, -9.0])

    groups = group_rows(["a", "a", "b", "a"], labels, logps, min_rows=2)

    # a: two of three desired, (-1 - 3 - 9) / 3
    assert groups == [("a", 3, pytest.approx(2 / 3), pytest.approx(-13 / 3))]


def rows_of(rates, logps, *, rows_per_group=50):
    names = np.repeat([f"g{i}" for i in range(len(rates))], rows_per_group)
    labels = np.concatenate([np.arange(rows_per_group) < round(rate * rows_per_group) for rate in rates])
    return names, labels, np.repeat(np.array(logps, dtype=float), rows_per_group)


def correlate(rates, logps):
    names, labels, values = rows_of(rates, logps)
    groups = group_rows(names, labels, values, min_rows=1)
    return rank_correlation(groups, names, labels, values, np.arange(len(names)), num_resamples=200, seed=0)


def test_correlation_is_of_ranks():
    interval = correlate([0.1, 0.4, 0.5, 0.9], [-100.0, -3.0, -2.0, -1.0])

    assert interval.value == pytest.approx(1.0)
    assert 0.5 < interval.low <= interval.high <= 1.0


def test_opposite_ranks_correlate_negatively():
    assert correlate([0.1, 0.4, 0.6, 0.9], [-1.0, -2.0, -3.0, -4.0]).value == pytest.approx(-1.0)


@pytest.mark.parametrize(("rates", "logps"), [([0.5, 0.5], [-1.0, -2.0]), ([0.5], [-1.0]), ([], [])])
def test_groups_that_do_not_differ_have_no_correlation(rates, logps):
    if not rates:
        assert rank_correlation([], [], np.array([]), np.array([]), np.array([]), num_resamples=9, seed=0) is None
        return

    assert correlate(rates, logps) is None
