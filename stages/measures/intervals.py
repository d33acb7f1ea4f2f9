"""Intervals for means and AUCs whose rows hang together: rows of one prompt are drawn together or not at all."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Numbers held at once while resampling; bounds memory, changes no result.
_BLOCK_ENTRIES = 2**22


class Interval(NamedTuple):
    """A statistic and the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike,
    groups: Sequence[str] | NDArray[np.generic],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over rows, with the interval from drawing groups with replacement.

    Args:
        values: one per row. Shape (n,).
        groups: the group of each row, such as its prompt. Length n.
        num_resamples: how often groups are drawn.
        seed: of the draws.
        level: share of resampled means that the interval covers.

    Raises:
        ValueError: there are no rows, or another number of groups than of values.
    """
    array = np.asarray(values, dtype=np.float64)
    resampled = resampled_sums(
        np.stack([array, np.ones_like(array)], axis=1), groups, num_resamples=num_resamples, seed=seed
    )
    return percentile_interval(float(array.mean()), resampled[:, 0] / resampled[:, 1], level=level)


def resampled_sums(
    values: NDArray[np.float64],
    groups: Sequence[str] | NDArray[np.generic],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Sums over rows in each resample of groups, from which statistics that are functions of sums follow.

    Args:
        values: k numbers per row. Shape (n, k).
        groups: the group of each row, such as its prompt. Length n.
        num_resamples: how often groups are drawn.
        seed: of the draws.

    Returns:
        Shape (num_resamples, k).

    Raises:
        ValueError: there are no rows, or another number of groups than of rows.
    """
    codes, num_groups = _group_codes(groups, len(values))
    sums = np.stack([np.bincount(codes, weights=column, minlength=num_groups) for column in values.T], axis=1)
    draws = _drawn_counts(num_groups, num_resamples=num_resamples, seed=seed, width=num_groups)
    return np.concatenate([drawn @ sums for drawn in draws])


def bootstrap_auc(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str] | NDArray[np.generic],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Probability that a positive row scores higher than a negative one (ties count half), with an interval.

    Resamples in which one class is missing say nothing about the AUC and are left out.

    Args:
        scores: one per row. Shape (n,).
        labels: whether a row is positive. Shape (n,).
        groups: the group of each row, such as its prompt. Length n.
        num_resamples: how often groups are drawn.
        seed: of the draws.
        level: share of resampled AUCs that the interval covers.

    Raises:
        ValueError: a class has no rows, or scores, labels and groups differ in number.
    """
    score_array, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    codes, num_groups = _group_codes(groups, len(score_array))
    _check_classes(score_array, is_positive)
    order = np.argsort(score_array, kind="stable")
    is_positive, codes = is_positive[order], codes[order]
    # Rows of equal score form one step of the curve.
    starts = np.flatnonzero(np.concatenate([[True], np.diff(score_array[order]) != 0]))

    value = _aucs(np.ones((1, len(codes))), is_positive, starts)[0]
    draws = _drawn_counts(num_groups, num_resamples=num_resamples, seed=seed, width=len(codes))
    resampled = np.concatenate([_aucs(drawn[:, codes], is_positive, starts) for drawn in draws])
    return percentile_interval(float(value), resampled, level=level)


def bootstrap_difference(
    values: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str] | NDArray[np.generic],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over positive rows minus mean over negative ones, with the interval from drawing groups.

    Resamples in which one class is missing have no difference and are left out.

    Args:
        values: one per row. Shape (n,).
        labels: whether a row is positive. Shape (n,).
        groups: the group of each row, such as its prompt. Length n.
        num_resamples: how often groups are drawn.
        seed: of the draws.
        level: share of resampled differences that the interval covers.

    Raises:
        ValueError: a class has no rows, or values, labels and groups differ in number.
    """
    array, is_positive = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=bool)
    _check_classes(array, is_positive)
    columns = [part for side in (is_positive, ~is_positive) for part in (array * side, side)]
    sums = resampled_sums(np.stack(columns, axis=1).astype(np.float64), groups, num_resamples=num_resamples, seed=seed)
    complete = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    differences = complete[:, 0] / complete[:, 1] - complete[:, 2] / complete[:, 3]
    value = float(array[is_positive].mean() - array[~is_positive].mean())
    return percentile_interval(value, differences, level=level)


def _check_classes(values: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> None:
    if len(is_positive) != len(values) or is_positive.all() or not is_positive.any():
        raise ValueError(
            f"expected one label per score and rows of both classes, found {len(values)} scores and "
            f"{int(is_positive.sum())} positive of {len(is_positive)} labels"
        )


def percentile_interval(value: float, resampled: NDArray[np.float64], *, level: float = 0.95) -> Interval:
    """The interval that covers the middle `level` of the resampled values.

    Args:
        value: the statistic of all rows.
        resampled: of each resample; those that aren't finite say nothing and are left out. Shape (r,).
        level: share of resampled values covered.
    """
    finite = resampled[np.isfinite(resampled)]
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]) if len(finite) else (value, value)
    return Interval(value, float(low), float(high))


def _aucs(
    weights: NDArray[np.float64], is_positive: NDArray[np.bool_], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUC of each row of weights over rows sorted by score; nan where a class has no weight."""
    positive = np.add.reduceat(weights * is_positive, starts, axis=1)
    negative = np.add.reduceat(weights * ~is_positive, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + 0.5 * negative)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    aucs: NDArray[np.float64] = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return aucs


def _group_codes(groups: Sequence[str] | NDArray[np.generic], num_rows: int) -> tuple[NDArray[np.int64], int]:
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if len(codes) != num_rows or not num_rows:
        raise ValueError(
            f"expected at least one row and a group for each, found {num_rows} rows and {len(codes)} groups"
        )
    return codes.astype(np.int64), len(names)


def _drawn_counts(num_groups: int, *, num_resamples: int, seed: int, width: int) -> Iterator[NDArray[np.float64]]:
    """How often each group is drawn, in blocks of shape (resamples, groups); `width` numbers per resample matter."""
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // width)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size).astype(np.float64)
