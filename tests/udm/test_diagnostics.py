"""Diagnostics of the shift, by numbers worked out by hand."""

import numpy as np
import pytest

from stages.udm.diagnostics import brier_score, calibration, class_weights, effective_sample_share


def test_classes_weigh_alike():
    # 3 desired, 1 undesired, n = 4: 2/3 each, and 2
    weights = class_weights(np.array([True, True, True, False]))

    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2.0])


def test_brier_score_is_a_quarter_for_a_classifier_that_knows_nothing():
    assert brier_score(np.full(4, 0.5), np.array([True, True, True, False])) == pytest.approx(0.25)


def test_brier_score_by_hand():
    # desired: (0.9 - 1)^2 = 0.01, (0.5 - 1)^2 = 0.25, mean 0.13; undesired: 0.2^2 = 0.04; mean of classes 0.085
    score = brier_score(np.array([0.9, 0.5, 0.2]), np.array([True, True, False]))

    assert score == pytest.approx(0.085)


def test_calibration_by_hand():
    # one bin: predictions 0.6, 0.65, shares with classes alike: 0.5; error |0.625 - 0.5| = 0.125
    result = calibration(np.array([0.6, 0.65]), np.array([True, False]))

    assert result.error == pytest.approx(0.125)
    (row,) = result.bins
    assert (row.low, row.high, row.num_rows) == (0.6, 0.7, 2)
    assert row.observed == pytest.approx(0.5)


def test_a_probability_of_one_stands_in_the_last_bin():
    result = calibration(np.array([1.0, 0.0]), np.array([True, False]))

    assert result.error == 0.0
    assert [row.low for row in result.bins] == [0.0, 0.9]


def test_probabilities_that_are_true_are_calibrated():
    random = np.random.default_rng(0)
    probabilities = random.random(20_000)
    labels = random.random(20_000) < probabilities

    assert calibration(probabilities, labels).error < 0.02


@pytest.mark.parametrize(
    ("weights", "share"),
    [([2.0, 2.0, 2.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 3.0], 0.8)],  # (1 + 3)^2 / (2 * (1 + 9)) = 0.8
)
def test_effective_sample_share_by_hand(weights, share):
    assert effective_sample_share(np.array(weights)) == pytest.approx(share)
