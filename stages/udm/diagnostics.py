"""How far prompts of the two labels differ, how well the classifier knows it, and what weighting costs.

Both classes count alike here whatever their sizes, as they do for the classifier.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stages.measures.intervals import bootstrap_auc
from stages.udm.correction import Corrections, Feedback, FittedClassifiers

Floats = NDArray[np.float64]


class CalibrationBin(NamedTuple):
    """Rows whose predicted probability lies between two bounds."""

    low: float
    high: float
    num_rows: int
    predicted: float
    """Mean probability."""
    observed: float
    """Share of desired rows."""


class Calibration(NamedTuple):
    """How well probabilities agree with shares."""

    error: float
    """Mean over rows of how far their bin's prediction is from its share (ECE)."""
    bins: list[CalibrationBin]
    """Bins that hold rows, in order."""


def class_weights(labels: NDArray[np.bool_]) -> Floats:
    """Weights with which both classes count alike and all rows sum to n.

    Args:
        labels: both classes must occur. Shape (n,).

    Returns:
        Shape (n,).
    """
    num_desired = int(labels.sum())
    half = len(labels) / 2
    return np.where(labels, half / num_desired, half / (len(labels) - num_desired))


def brier_score(probabilities: Floats, labels: NDArray[np.bool_]) -> float:
    """Mean squared error of the probabilities with classes of equal weight; 0.25 for a classifier that knows nothing.

    Args:
        probabilities: of being desired. Shape (n,).
        labels: whether each row is desired. Shape (n,).
    """
    return float(np.average(np.square(probabilities - labels), weights=class_weights(labels)))


def calibration(probabilities: Floats, labels: NDArray[np.bool_], *, num_bins: int = 10) -> Calibration:
    """Predicted probabilities against shares of desired rows, in bins of equal width.

    Args:
        probabilities: of being desired. Shape (n,).
        labels: whether each row is desired. Shape (n,).
        num_bins: bins between 0 and 1.
    """
    weights = class_weights(labels)
    places = np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)
    sums: dict[str, Any] = {
        name: np.bincount(places, weights=weights * values, minlength=num_bins)
        for name, values in (("weight", 1.0), ("predicted", probabilities), ("observed", labels))
    }
    counts = np.bincount(places, minlength=num_bins)
    bins, error = [], 0.0
    for place in np.flatnonzero(counts):
        predicted, observed = (float(sums[name][place] / sums["weight"][place]) for name in ("predicted", "observed"))
        bins.append(CalibrationBin(place / num_bins, (place + 1) / num_bins, int(counts[place]), predicted, observed))
        error += sums["weight"][place] * abs(predicted - observed)
    return Calibration(float(error / sums["weight"].sum()), bins)


def effective_sample_share(weights: Floats) -> float:
    """Share of rows that as many rows of equal weight would be as good as, (sum w)^2 / (n * sum w^2).

    Args:
        weights: not all zero. Shape (n,).
    """
    return float(np.square(weights.sum()) / (len(weights) * np.square(weights).sum()))


def shift_metrics(
    feedback: Feedback,
    fitted: FittedClassifiers,
    corrections: Corrections,
    *,
    minimum: float,
    maximum: float,
    seed: int,
) -> dict[str, Any]:
    """Numbers about the shift between prompts of desired and undesired rows, over all labelled rows.

    Args:
        feedback: the labelled rows.
        fitted: the classifiers.
        corrections: what they gave, per prompt.
        minimum: lower clamp of the ratio.
        maximum: upper clamp of the ratio.
        seed: of the bootstrap, which draws prompts.

    Returns:
        Finite JSON values: `auc` (value, low, high), `brier_score`, `calibration_error`, `effective_sample_share` of
        UDM's weights, of the same before they are clamped, and of those in force, `clamped_share` of undesired rows at
        each end, counts of rows and
        prompts.
    """
    labels, prompts = feedback.labels, feedback.prompts
    logits, ratios = corrections.logits[prompts], corrections.density_ratio[prompts]
    probabilities = expit(logits)
    # Scaled by the largest, for that changes no share and exp would overflow.
    unclamped = np.exp(logits[~labels] - logits[~labels].max())
    return {
        "num_folds": max(1, len(fitted.desired.folds)),
        "auc": bootstrap_auc(logits, labels, prompts, seed=seed)._asdict(),
        "brier_score": brier_score(probabilities, labels),
        "calibration_error": calibration(probabilities, labels).error,
        "effective_sample_share": {
            "udm": effective_sample_share(ratios[~labels]),
            "udm_before_clamping": effective_sample_share(unclamped),
            "desired": effective_sample_share(corrections.desired_weight[prompts[labels]]),
            "undesired": effective_sample_share(corrections.undesired_weight[prompts[~labels]]),
        },
        "clamped_share": {
            "low": float(np.mean(ratios[~labels] <= minimum)),
            "high": float(np.mean(ratios[~labels] >= maximum)),
        },
        "rows": {
            "desired": int(labels.sum()),
            "undesired": int((~labels).sum()),
            "fitted_desired": fitted.num_rows[0],
            "fitted_undesired": fitted.num_rows[1],
            "served": len(feedback.served),
        },
        "prompts": {"all": len(feedback.prompt_ids), "labelled": len(np.unique(prompts))},
    }


class RatioQuantile(NamedTuple):
    """Density ratio that a share of a label's rows doesn't exceed."""

    label: str
    share: float
    density_ratio: float


def ratio_quantiles(feedback: Feedback, corrections: Corrections, *, num_steps: int = 20) -> list[RatioQuantile]:
    """The distribution of density ratios over the rows of each label.

    Args:
        feedback: the labelled rows.
        corrections: of all prompts.
        num_steps: steps from the smallest ratio to the largest.
    """
    ratios = corrections.density_ratio[feedback.prompts]
    shares = np.linspace(0, 1, num_steps + 1)
    sides = {"desired": ratios[feedback.labels], "undesired": ratios[~feedback.labels]}
    return [
        RatioQuantile(name, float(share), float(value))
        for name, side in sides.items()
        for share, value in zip(shares, np.quantile(side, shares), strict=True)
    ]
