"""What a correction makes of the classifiers: weights for rows, or an offset for the logit.

With p+(x) and p-(x) the distributions of prompts of desired and undesired rows, and p(x) that of all prompts served:
`udm` weighs undesired rows by p+/p-, `offset` adds log p+/p- to the logit of the BCO loss, and `deployment` weighs
desired rows by p/p+ and undesired rows by p/p-.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.udm.classifier import (
    CrossFitted,
    clamped_odds,
    cross_fit,
    deal_folds,
    draw_rows,
    draw_rows_with_replacement,
    fit_classifier,
)

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
CorrectionName = Literal["none", "udm", "offset", "deployment"]


class Feedback(NamedTuple):
    """Rows that the classifiers are fitted on. A row is given by the place of its prompt among all prompts."""

    prompt_ids: Sequence[str]
    """Of all p distinct prompts."""
    embeddings: NDArray[np.float32]
    """Shape (p, d)."""
    row_ids: Sequence[str]
    """Of the n labelled rows."""
    prompts: Places
    """Prompt of each labelled row. Shape (n,)."""
    labels: NDArray[np.bool_]
    """Whether each is desired. Shape (n,)."""
    served: Places
    """Prompt of each time that a prompt was served, with or without a label. Length m."""
    served_ids: Sequence[str]
    """What each of those times is drawn by. Length m."""


class FittedClassifiers(NamedTuple):
    """Classifiers, and the fold of each prompt in them."""

    desired: CrossFitted
    """Desired against undesired rows."""
    served: dict[str, CrossFitted]
    """For `deployment`: prompts served against those of desired rows, and against those of undesired rows."""
    folds: Places
    """Shape (p,); -1 for a prompt that no classifier has seen."""
    num_rows: tuple[int, int]
    """Desired and undesired rows that the classifiers were fitted on."""


class Corrections(NamedTuple):
    """One entry per prompt; all of shape (p,)."""

    logits: Floats
    """log p+(x) / p-(x)."""
    density_ratio: Floats
    """p+(x) / p-(x), clamped."""
    desired_weight: Floats
    undesired_weight: Floats
    logit_offset: Floats


class NotMeasuredError(ValueError):
    """There is too little feedback of one label to say how the prompts of the two differ."""


def fit(
    feedback: Feedback,
    *,
    correction: CorrectionName,
    sample_size: int,
    num_folds: int,
    standardize: bool,
    seed: int,
    parity: bool,
) -> FittedClassifiers:
    """Draw rows and fit what a correction needs.

    Args:
        feedback: the rows to draw from.
        correction: decides whether prompts served are compared with those of either label, too.
        sample_size: rows of each label, and prompts served, at most.
        num_folds: folds for cross-fitting; 1 for none.
        standardize: whether to standardise embeddings first.
        seed: of the draws.
        parity: draw with replacement and fit on all rows drawn, as TRL 0.21 does.

    Raises:
        NotMeasuredError: there is feedback of one label only, or too few prompts of one to cross-fit.
    """
    desired, undesired = np.flatnonzero(feedback.labels), np.flatnonzero(~feedback.labels)
    if not len(desired) or not len(undesired):
        raise NotMeasuredError(
            f"expected desired and undesired rows to compare, found {len(desired)} desired and {len(undesired)} "
            "undesired ones in the train split; BCO needs feedback of both kinds, and SFT can use desired rows alone"
        )
    if parity:
        drawn = draw_rows_with_replacement(len(desired), len(undesired), limit=sample_size, seed=seed)
    else:
        drawn = [
            draw_rows([feedback.row_ids[row] for row in rows.tolist()], limit=sample_size, seed=seed)
            for rows in (desired, undesired)
        ]
    plus, minus = feedback.prompts[desired[drawn[0]]], feedback.prompts[undesired[drawn[1]]]
    counts = (len(plus), len(minus))
    if parity:
        embeddings, labels = _two_classes(feedback.embeddings, plus, minus)
        full = fit_classifier(embeddings, labels, standardize=standardize, max_iter=100)
        return FittedClassifiers(CrossFitted(full, ()), {}, np.full(len(feedback.prompt_ids), -1), counts)

    pairs = {"desired": (plus, minus)}
    if correction == "deployment":
        served = feedback.served[draw_rows(feedback.served_ids, limit=sample_size, seed=seed)]
        pairs |= {"served_to_desired": (served, plus), "served_to_undesired": (served, minus)}
    num_folds = _possible_folds(plus, minus, num_folds)
    folds = deal_folds(feedback.prompt_ids, _kinds(len(feedback.prompt_ids), pairs), num_folds=num_folds)
    fitted = {}
    for name, (positive, negative) in pairs.items():
        embeddings, labels = _two_classes(feedback.embeddings, positive, negative)
        row_folds = folds[np.concatenate([positive, negative])]
        fitted[name] = cross_fit(embeddings, labels, row_folds, num_folds=num_folds, standardize=standardize)
    return FittedClassifiers(fitted.pop("desired"), fitted, folds, counts)


def _two_classes(
    embeddings: NDArray[np.float32], positive: Places, negative: Places
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return embeddings[np.concatenate([positive, negative])], np.arange(len(positive) + len(negative)) < len(positive)


def _possible_folds(plus: Places, minus: Places, num_folds: int) -> int:
    """As many folds as asked for, or one per prompt if there are fewer prompts."""
    num_plus, num_minus = len(np.unique(plus)), len(np.unique(minus))
    if num_folds > 1 and min(num_plus, num_minus) < 2:
        raise NotMeasuredError(
            "expected at least two prompts of each label, so that each can be judged by a classifier that hasn't seen "
            f"it, found {num_plus} of desired and {num_minus} of undesired rows; collect more feedback, or set "
            "density_ratio.num_folds: 1"
        )
    return min(num_folds, len(np.union1d(plus, minus)))


def _kinds(num_prompts: int, pairs: dict[str, tuple[Places, Places]]) -> Places:
    """Kinds for `deal_folds`: desired only, both, undesired only, served only; -1 for all other prompts."""
    kinds = np.full(num_prompts, -1, dtype=np.int64)
    plus, minus = pairs["desired"]
    if "served_to_desired" in pairs:
        kinds[pairs["served_to_desired"][0]] = 3
    kinds[minus] = 2
    kinds[plus] = 0
    kinds[np.intersect1d(plus, minus)] = 1
    return kinds


def correct(
    fitted: FittedClassifiers,
    embeddings: NDArray[np.float32],
    *,
    correction: CorrectionName,
    minimum: float,
    maximum: float,
) -> Corrections:
    """Weights and offset of each prompt.

    Args:
        fitted: what `fit` gave for the same correction.
        embeddings: of all prompts. Shape (p, d).
        correction: what to apply. The ratio is given for any; weights that a correction doesn't use are 1, offsets 0.
        minimum: lower clamp of ratios and weights.
        maximum: upper clamp of ratios and weights. Offsets aren't clamped: they are logs and multiply nothing.
    """
    logits = fitted.desired.logits(embeddings, fitted.folds)
    ratios = clamped_odds(logits, minimum=minimum, maximum=maximum)
    ones, zeros = np.ones(len(logits)), np.zeros(len(logits))
    none: dict[str, Any] = {"desired_weight": ones, "undesired_weight": ones, "logit_offset": zeros}
    if correction == "udm":
        none["undesired_weight"] = ratios
    elif correction == "offset":
        none["logit_offset"] = logits
    elif correction == "deployment":
        for label in ("desired", "undesired"):
            served = fitted.served[f"served_to_{label}"].logits(embeddings, fitted.folds)
            none[f"{label}_weight"] = clamped_odds(served, minimum=minimum, maximum=maximum)
    return Corrections(logits, ratios, **none)
