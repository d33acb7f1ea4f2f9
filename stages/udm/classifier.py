"""The classifier of underlying distribution matching (UDM), which tells desired prompts from undesired ones.

A logistic regression on prompt embeddings estimates how much likelier a prompt is among desired rows than among
undesired ones, p+(x) / p-(x) in Jung et al. 2024, https://arxiv.org/abs/2404.04656. A classifier that has seen a
prompt's own labels would answer with them, so each prompt is scored by one that was fitted on other prompts.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # the package ships no types

from stages.contracts.files import write_json

Floats = NDArray[np.float64]
# Keeps the odds finite where a probability is 1; TRL 0.21's value.
_ODDS_FLOOR = 1e-8


@dataclass(frozen=True)
class LogisticClassifier:
    """A logistic regression as plain arrays."""

    coefficients: Floats
    """Shape (d,)."""
    intercept: float
    """Logit of an embedding of zeros, after standardisation."""
    mean: Floats
    """Subtracted from embeddings; zeros without standardisation. Shape (d,)."""
    scale: Floats
    """Embeddings are divided by it; ones without standardisation. Shape (d,)."""

    def logits(self, embeddings: NDArray[np.floating[Any]]) -> Floats:
        """Log-odds of the positive class, for classes of equal size.

        Args:
            embeddings: shape (n, d).

        Returns:
            Shape (n,).

        Raises:
            ValueError: the embeddings have another width than those that it was fitted on.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.coefficients):
            raise ValueError(
                f"expected embeddings of width {len(self.coefficients)}, found shape {embeddings.shape}; "
                "fit the classifier on embeddings of the same encoder"
            )
        slopes = self.coefficients / self.scale
        # einsum adds in one order, however many threads the machine's algebra library would use.
        products: Floats = np.einsum("nd,d->n", embeddings.astype(np.float64), slopes)
        return products + (self.intercept - float(np.sum(self.mean * slopes)))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "coefficients": self.coefficients.tolist(),
            "intercept": self.intercept,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The classifier that `to_json` gave `value` for."""
        arrays = {name: np.array(value[name], dtype=np.float64) for name in ("coefficients", "mean", "scale")}
        return cls(intercept=float(value["intercept"]), **arrays)


@dataclass(frozen=True)
class CrossFitted:
    """A classifier fitted on all rows, and one per fold of prompts fitted on the rows of all other folds."""

    full: LogisticClassifier
    """Fitted on all rows."""
    folds: tuple[LogisticClassifier, ...]
    """Entry k has seen no prompt of fold k; empty without cross-fitting."""

    def logits(self, embeddings: NDArray[np.floating[Any]], folds: NDArray[np.int64]) -> Floats:
        """Log-odds of each prompt by a classifier that hasn't seen it.

        Args:
            embeddings: shape (n, d).
            folds: fold of each prompt; -1 for one that no classifier has seen, which the full one scores. Shape (n,).

        Returns:
            Shape (n,).
        """
        logits = self.full.logits(embeddings)
        for fold, classifier in enumerate(self.folds):
            inside = folds == fold
            logits[inside] = classifier.logits(embeddings[inside])
        return logits

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"full": self.full.to_json(), "folds": [classifier.to_json() for classifier in self.folds]}


def fit_classifier(
    embeddings: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_],
    *,
    standardize: bool = False,
    max_iter: int = 1000,
) -> LogisticClassifier:
    """Fit a logistic regression that weighs both classes alike: L2 penalty with C = 1, intercept not penalised.

    Args:
        embeddings: of each row's prompt. Shape (n, d).
        labels: the class of each row. Shape (n,).
        standardize: whether to bring each dimension to mean 0 and variance 1 first, so that the penalty means the
            same for any encoder.
        max_iter: steps of the solver.

    Raises:
        ValueError: the rows have one class only.
    """
    if labels.all() or not labels.any():
        raise ValueError(f"expected rows of both classes, found {int(labels.sum())} positive of {len(labels)}")
    width = embeddings.shape[1]
    mean, scale = np.zeros(width), np.ones(width)
    if standardize:
        mean, scale = embeddings.mean(axis=0, dtype=np.float64), embeddings.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1.0
        embeddings = (embeddings - mean) / scale
    # With several threads sums are added in another order, and the same data would give other last bits.
    with threadpool_limits(limits=1):
        fitted = LogisticRegression(class_weight="balanced", max_iter=max_iter).fit(embeddings, labels)
    return LogisticClassifier(fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0]), mean, scale)


def cross_fit(
    embeddings: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    *,
    num_folds: int,
    standardize: bool = False,
) -> CrossFitted:
    """Fit the full classifier and one for each fold on the rows outside it.

    Args:
        embeddings: of each row's prompt. Shape (n, d).
        labels: the class of each row. Shape (n,).
        folds: fold of each row's prompt, from 0 to `num_folds` - 1. Shape (n,).
        num_folds: how many; 1 fits the full classifier alone.
        standardize: as in `fit_classifier`.

    Raises:
        ValueError: the rows, or those outside a fold, have one class only.
    """
    full = fit_classifier(embeddings, labels, standardize=standardize)
    if num_folds == 1:
        return CrossFitted(full, ())
    return CrossFitted(
        full,
        tuple(
            fit_classifier(embeddings[folds != fold], labels[folds != fold], standardize=standardize)
            for fold in range(num_folds)
        ),
    )


def deal_folds(prompt_ids: Sequence[str], kinds: NDArray[np.int64], *, num_folds: int) -> NDArray[np.int64]:
    """Fold of each prompt that a classifier is fitted on.

    Kinds are dealt out one after the other, each in the order of a hash. With prompts that have desired rows as kind
    0, both as 1 and undesired ones as 2, the prompts of either class come in a row, so that a class with two prompts
    stands in two folds and every classifier sees both classes.

    Args:
        prompt_ids: of distinct prompts.
        kinds: place of each prompt's kind in the dealing; -1 for a prompt that nothing is fitted on. Shape (n,).
        num_folds: how many folds.

    Returns:
        From 0 to `num_folds` - 1; -1 where the kind is -1. Shape (n,).
    """
    folds = np.full(len(prompt_ids), -1, dtype=np.int64)
    dealt = np.flatnonzero(kinds >= 0).tolist()
    dealt.sort(key=lambda index: (kinds[index], _hash("fold", prompt_ids[index])))
    folds[dealt] = np.arange(len(dealt)) % num_folds
    return folds


def draw_rows(row_ids: Sequence[str], *, limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows without replacement: those with the smallest hashes, so a new row replaces one at most.

    Args:
        row_ids: one per row; equal ones stand or fall together up to the limit.
        limit: rows to draw.
        seed: enters the hash.

    Returns:
        Places of the rows drawn, ascending.
    """
    if len(row_ids) <= limit:
        return np.arange(len(row_ids), dtype=np.int64)
    order = sorted(range(len(row_ids)), key=lambda index: _hash(str(seed), row_ids[index]))
    return np.sort(np.array(order[:limit], dtype=np.int64))


def draw_rows_with_replacement(
    num_desired: int, num_undesired: int, *, limit: int, seed: int
) -> list[NDArray[np.int64]]:
    """Rows as TRL 0.21 draws them: up to `limit` of each label with replacement, desired ones first.

    Args:
        num_desired: rows to draw from.
        num_undesired: rows to draw from.
        limit: rows to draw of each.
        seed: of NumPy's legacy generator.

    Returns:
        Places among the desired rows, and places among the undesired ones.
    """
    random = np.random.RandomState(seed)
    return [random.choice(count, min(count, limit), replace=True) for count in (num_desired, num_undesired)]


def clamped_odds(logits: Floats, *, minimum: float, maximum: float) -> Floats:
    """Odds p / (1 - p + 1e-8) of the probability p that belongs to each logit, clamped.

    Args:
        logits: log-odds. Shape (n,).
        minimum: lower clamp.
        maximum: upper clamp.

    Returns:
        Shape (n,).
    """
    odds: Floats = np.clip(expit(logits) / (expit(-logits) + _ODDS_FLOOR), minimum, maximum)
    return odds


def save_classifier(path: Path, classifier: CrossFitted, **others: CrossFitted) -> None:
    """Write classifiers as JSON of plain arrays.

    Args:
        path: file to write.
        classifier: desired against undesired.
        others: further classifiers by name.
    """
    value = {"kind": "udm_classifier", "version": 1, "desired": classifier.to_json()}
    write_json(path, {**value, **{name: other.to_json() for name, other in others.items()}})


def load_classifier(path: Path, *, name: str = "desired") -> CrossFitted:
    """A classifier that `save_classifier` wrote; its `full` scores prompts that weren't there.

    Args:
        path: file to read.
        name: which of them; `desired` tells desired prompts from undesired ones.

    Raises:
        ValueError: the file holds no such classifier.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if (value["kind"], value["version"]) != ("udm_classifier", 1):
            raise ValueError(f"{path}: expected udm_classifier v1, found {value['kind']} v{value['version']}")
        folds = tuple(LogisticClassifier.from_json(fold) for fold in value[name]["folds"])
        return CrossFitted(LogisticClassifier.from_json(value[name]["full"]), folds)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: expected a UDM classifier {name}, found none; rerun density_ratio") from None


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()
