"""What evaluation measures of a reward model on held-out pairs, each number with an interval over prompts.

The model's lead in a pair is its score of the chosen completion minus that of the rejected one, and the logistic
function of the lead is the probability that it gives to people's choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.measures.intervals import Interval, bootstrap_mean, percentile_interval, resampled_sums
from stages.measures.preference_metrics import (
    Resampling,
    ScoredRows,
    calibration_bins,
    calibration_error,
    interval_json,
    nested,
    sigmoid,
)


class ScoredPairs(NamedTuple):
    """Scores and lengths of n held-out pairs; each of shape (n,)."""

    prompt_ids: NDArray[np.str_]
    chosen: NDArray[np.float64]
    """Score of the completion that people chose."""
    rejected: NDArray[np.float64]
    chosen_lengths: NDArray[np.int64]
    """Tokens of the completion that people chose."""
    rejected_lengths: NDArray[np.int64]

    def where(self, is_kept: NDArray[np.bool_]) -> "ScoredPairs":
        """The pairs for which `is_kept` is true."""
        return ScoredPairs(**{name: values[is_kept] for name, values in self._asdict().items()})

    @property
    def leads(self) -> NDArray[np.float64]:
        """Score of the chosen completion minus that of the rejected one. Shape (n,)."""
        return self.chosen - self.rejected

    @property
    def wins(self) -> NDArray[np.float64]:
        """1 where the model prefers what people chose, 0 where it doesn't, 1/2 for a tie. Shape (n,)."""
        return won(self.leads)


def won(leads: NDArray[Any]) -> NDArray[np.float64]:
    """1, 1/2 or 0 for a lead above, at or below 0."""
    found: NDArray[np.float64] = (np.sign(leads).astype(np.float64) + 1) / 2
    return found


def pair_metrics(pairs: ScoredPairs, resampling: Resampling) -> dict[str, Interval]:
    """How well the scores tell chosen from rejected completions.

    `accuracy`: share of pairs that the model gets right, ties counted half. `margin`: mean lead. `loss`: mean of
    -log sigmoid(lead). `brier`: mean squared distance of sigmoid(lead) from 1.
    """
    values = {
        "accuracy": pairs.wins,
        "margin": pairs.leads,
        "loss": np.logaddexp(0.0, -pairs.leads),
        "brier": (1 - sigmoid(pairs.leads)) ** 2,
    }
    return {name: bootstrap_mean(value, pairs.prompt_ids, **resampling._asdict()) for name, value in values.items()}


def length_metrics(pairs: ScoredPairs, resampling: Resampling) -> dict[str, Interval]:
    """Whether the model takes length for quality; names begin with `length/`.

    `chosen`, `rejected`: mean tokens of the completions. Of pairs whose completions differ in length, `people` and
    `model`: share in which people, or the model, prefer the longer one; `bias`: the model's share minus people's, so
    that above 0 it favours length more than people do; `correlation` of the lead with the difference in length;
    `accuracy_longer_chosen` and `accuracy_shorter_chosen`: accuracy where people chose the longer or the shorter one.
    What has no pairs is left out.
    """
    arguments = resampling._asdict()
    metrics = {
        "length/chosen": bootstrap_mean(pairs.chosen_lengths, pairs.prompt_ids, **arguments),
        "length/rejected": bootstrap_mean(pairs.rejected_lengths, pairs.prompt_ids, **arguments),
    }
    differing = pairs.where(pairs.chosen_lengths != pairs.rejected_lengths)
    if len(differing.chosen):
        is_longer = differing.chosen_lengths > differing.rejected_lengths
        prefers_longer = np.where(is_longer, differing.wins, 1 - differing.wins)
        shares = {"people": is_longer, "model": prefers_longer, "bias": prefers_longer - is_longer}
        metrics |= {
            f"length/{name}": bootstrap_mean(values, differing.prompt_ids, **arguments)
            for name, values in shares.items()
        }
        metrics |= {
            f"length/accuracy_{name}_chosen": bootstrap_mean(
                differing.wins[inside], differing.prompt_ids[inside], **arguments
            )
            for name, inside in (("longer", is_longer), ("shorter", ~is_longer))
            if inside.any()
        }
        differences = differing.chosen_lengths - differing.rejected_lengths
        metrics |= _correlation(differing.leads, differences, differing.prompt_ids, resampling)
    return metrics


def _correlation(
    leads: NDArray[np.float64], differences: NDArray[np.int64], prompt_ids: NDArray[np.str_], resampling: Resampling
) -> dict[str, Interval]:
    # Standardised, so that the sums of squares below lose no digits.
    if len(leads) < 2 or not leads.std() > 0 or not differences.std() > 0:
        return {}
    x, y = ((values - values.mean()) / values.std() for values in (leads, differences.astype(np.float64)))
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    value = _correlations(columns.sum(axis=0)[None])[0]
    sums = resampled_sums(columns, prompt_ids, **resampling._asdict())
    return {"length/correlation": percentile_interval(float(value), _correlations(sums))}


def _correlations(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation from n and the sums of x, y, x², y² and xy; nan where one of them doesn't vary."""
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x).clip(0) * (n * yy - y * y).clip(0)
    found: NDArray[np.float64] = np.divide(
        n * xy - x * y, np.sqrt(spread), out=np.full(len(n), np.nan), where=spread > 0
    )
    return found


def pair_calibration(pairs: ScoredPairs, resampling: Resampling, *, num_bins: int) -> list[dict[str, float]]:
    """Probability that the model gives a completion to be the chosen one, and how often it is, per bin of equal width.

    Every pair is read both ways round, for read one way alone the chosen completion always wins. So the curve mirrors
    itself, and a pair counts as two rows.
    """
    num_pairs = len(pairs.leads)
    logits = np.concatenate([pairs.leads, -pairs.leads])
    both = ScoredRows(
        np.concatenate([pairs.prompt_ids] * 2),
        [None] * (2 * num_pairs),
        np.arange(2 * num_pairs) < num_pairs,
        logits,
        logits,
    )
    return calibration_bins(both, resampling, num_bins=num_bins)


def accuracy_by_length(pairs: ScoredPairs, resampling: Resampling, *, num_bins: int) -> list[dict[str, float]]:
    """Accuracy per range of the difference in length, ranges holding about as many pairs each.

    Returns:
        Per range that holds any pairs: its least and greatest difference in tokens (chosen minus rejected), the
        accuracy with its interval, the mean lead, and the number of pairs.
    """
    differences = pairs.chosen_lengths - pairs.rejected_lengths
    edges = np.unique(np.quantile(differences, np.linspace(0, 1, num_bins + 1)[1:-1]))
    places = np.searchsorted(edges, differences, side="left")
    table = []
    for place in np.unique(places):
        inside = pairs.where(places == place)
        accuracy = bootstrap_mean(inside.wins, inside.prompt_ids, **resampling._asdict())
        table.append(
            {
                "difference_low": int(differences[places == place].min()),
                "difference_high": int(differences[places == place].max()),
                **interval_columns(accuracy, "accuracy"),
                "margin": float(inside.leads.mean()),
                "pairs": len(inside.leads),
            }
        )
    return table


def interval_columns(interval: Interval, name: str) -> dict[str, float]:
    """An interval as three columns of a table: the value under `name`, `low` and `high`."""
    value, low, high = interval_json(interval).values()
    return {name: value, "low": low, "high": high}


def metrics_by_slice(
    pairs: ScoredPairs, slices: Mapping[str, str | None], resampling: Resampling
) -> list[dict[str, Any]]:
    """Accuracy and margin of each slice, in order of their names.

    Args:
        pairs: scored pairs.
        slices: the slice of each prompt by its id; prompts without one stand under "(none)".
        resampling: how intervals are made.
    """
    names = np.array([slices[prompt_id] or "(none)" for prompt_id in pairs.prompt_ids.tolist()], dtype=str)
    table = []
    for name in np.unique(names).tolist():
        inside = pairs.where(names == name)
        for metric, interval in pair_metrics(inside, resampling).items():
            table.append({"slice": name, "metric": metric, **interval_json(interval), "pairs": len(inside.chosen)})
    return table


def pair_summary(pairs: ScoredPairs, bins: Sequence[Mapping[str, float]], resampling: Resampling) -> dict[str, Any]:
    """All metrics over all pairs as finite JSON values, with the counts that they rest on.

    Args:
        pairs: scored pairs.
        bins: what `pair_calibration` made of them.
        resampling: how intervals are made.
    """
    scores = np.concatenate([pairs.chosen, pairs.rejected])
    return {
        **nested({**pair_metrics(pairs, resampling), **length_metrics(pairs, resampling)}),
        "ece": round(calibration_error(bins), 6),
        "score": {"mean": float(f"{scores.mean():.6g}"), "std": float(f"{scores.std():.6g}")},
        "counts": {
            "pairs": len(pairs.chosen),
            "prompts": len(np.unique(pairs.prompt_ids)),
            "ties": int((pairs.leads == 0).sum()),
        },
    }
