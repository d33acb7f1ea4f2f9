"""What evaluation measures of a policy, each number with an interval from drawing prompts with replacement.

The implicit reward is beta * (log-probability under the policy - under the reference); minus the reward shift of
training it is the logit by which the policy calls a completion desired.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.measures.intervals import Interval, bootstrap_auc, bootstrap_difference, bootstrap_mean

OTHER_SLICES = "(other)"
NO_SLICE = "(none)"


class ScoredRows(NamedTuple):
    """Labelled completions of held-out prompts with their implicit rewards; n of each."""

    prompt_ids: NDArray[np.str_]
    pair_ids: Sequence[str | None]
    """Shared by the two rows of a pair."""
    labels: NDArray[np.bool_]
    rewards: NDArray[np.float64]
    """Implicit reward, nats times beta."""
    logits: NDArray[np.float64]
    """Reward minus the reward shift."""

    def where(self, is_kept: NDArray[np.bool_]) -> "ScoredRows":
        """The rows for which `is_kept` is true."""
        pair_ids = [pair_id for pair_id, kept in zip(self.pair_ids, is_kept, strict=True) if kept]
        return ScoredRows(
            self.prompt_ids[is_kept], pair_ids, self.labels[is_kept], self.rewards[is_kept], self.logits[is_kept]
        )


def scored_rows(table: Any, policy_logps: NDArray[np.float64], *, beta: float, reward_shift: float) -> ScoredRows:
    """Rows with their implicit rewards.

    Args:
        table: Arrow table with the columns `prompt_id`, `pair_id`, `label` and `reference_logps`.
        policy_logps: log-probability of each row under the policy, nats. Shape (n,).
        beta: scale of the reward.
        reward_shift: what training subtracts from rewards.
    """
    rewards = beta * (policy_logps - np.array(table["reference_logps"].to_pylist(), dtype=np.float64))
    return ScoredRows(
        np.array(table["prompt_id"].to_pylist(), dtype=str),
        table["pair_id"].to_pylist(),
        np.array(table["label"].to_pylist(), dtype=bool),
        rewards,
        rewards - reward_shift,
    )


class SampledPrompts(NamedTuple):
    """Means over the samples of each prompt, by the name of what was measured; k prompts."""

    prompt_ids: NDArray[np.str_]
    values: Mapping[str, NDArray[np.float64]]

    def where(self, is_kept: NDArray[np.bool_]) -> "SampledPrompts":
        """The prompts for which `is_kept` is true."""
        return SampledPrompts(self.prompt_ids[is_kept], {name: v[is_kept] for name, v in self.values.items()})


class Resampling(NamedTuple):
    """How intervals are made."""

    num_resamples: int
    seed: int


def reward_metrics(rows: ScoredRows, resampling: Resampling) -> dict[str, Interval]:
    """How well the implicit reward tells desired from undesired completions.

    `accuracy`: share of rows on the right side of the shift. `brier`: mean squared error of sigmoid(logit). With
    both classes also `margin`, mean reward of desired minus that of undesired rows, and `auc`; with pairs
    `pair_accuracy`, share of pairs whose chosen completion has the larger reward. No rows, no metrics.
    """
    if not len(rows.labels):
        return {}
    arguments = resampling._asdict()
    metrics = {
        "accuracy": bootstrap_mean((rows.logits > 0) == rows.labels, rows.prompt_ids, **arguments),
        "brier": bootstrap_mean((sigmoid(rows.logits) - rows.labels) ** 2, rows.prompt_ids, **arguments),
    }
    if rows.labels.any() and not rows.labels.all():
        metrics["margin"] = bootstrap_difference(rows.rewards, rows.labels, rows.prompt_ids, **arguments)
        metrics["auc"] = bootstrap_auc(rows.rewards, rows.labels, rows.prompt_ids, **arguments)
    wins, pair_prompts = _pair_wins(rows)
    if len(wins):
        metrics["pair_accuracy"] = bootstrap_mean(wins, pair_prompts, **arguments)
    return metrics


def sampling_metrics(prompts: SampledPrompts, resampling: Resampling) -> dict[str, Interval]:
    """Mean over prompts of each thing measured on samples."""
    if not len(prompts.prompt_ids):
        return {}
    return {
        name: bootstrap_mean(values, prompts.prompt_ids, **resampling._asdict())
        for name, values in prompts.values.items()
    }


def compare_scores(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, NDArray[Any]]:
    """True reward of both models per prompt, the gain, and how often the policy's sample scores higher.

    Args:
        policy: scores of the policy's samples, per prompt.
        reference: scores of the reference's samples, per prompt.

    Returns:
        One value per prompt each: mean scores and their difference, and the share of pairs of a sample of each
        model that the policy wins, ties counted half.
    """
    ours, theirs = np.asarray(policy, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    differences = ours[:, :, None] - theirs[:, None, :]
    return {
        "true_reward/policy": ours.mean(axis=1),
        "true_reward/reference": theirs.mean(axis=1),
        "true_reward/gain": ours.mean(axis=1) - theirs.mean(axis=1),
        "win_rate": ((np.sign(differences) + 1) / 2).mean(axis=(1, 2)),
    }


def calibration_bins(rows: ScoredRows, resampling: Resampling, *, num_bins: int) -> list[dict[str, float]]:
    """Predicted probability and observed share of desired rows, per bin of equal width that holds any rows."""
    probabilities = sigmoid(rows.logits)
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    table = []
    for index in np.unique(bins):
        inside = bins == index
        observed = bootstrap_mean(rows.labels[inside], rows.prompt_ids[inside], **resampling._asdict())
        table.append(
            {
                "bin_low": index / num_bins,
                "bin_high": (index + 1) / num_bins,
                "predicted": float(probabilities[inside].mean()),
                "observed": observed.value,
                "low": observed.low,
                "high": observed.high,
                "rows": int(inside.sum()),
            }
        )
    return table


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: distance of predicted and observed, averaged over rows."""
    rows = sum(bin_["rows"] for bin_ in bins)
    return sum(abs(bin_["predicted"] - bin_["observed"]) * bin_["rows"] for bin_ in bins) / rows


def metrics_by_slice(
    rows: ScoredRows,
    prompts: SampledPrompts,
    slices: Mapping[str, str | None],
    resampling: Resampling,
    *,
    max_slices: int,
) -> list[dict[str, Any]]:
    """Every metric for every slice.

    Args:
        rows: labelled rows.
        prompts: prompts that were sampled from.
        slices: the slice of each prompt by its id; prompts without one stand together.
        resampling: how intervals are made.
        max_slices: slices shown; those with the fewest prompts beyond that stand together.

    Returns:
        One mapping of slice, metric, value, low, high, prompts and rows each, slices in order of their name.
    """
    names = _merged(slices, max_slices=max_slices)
    row_slices = np.array([names[prompt_id] for prompt_id in rows.prompt_ids.tolist()], dtype=str)
    prompt_slices = np.array([names[prompt_id] for prompt_id in prompts.prompt_ids.tolist()], dtype=str)
    table = []
    for name in sorted(set(names.values())):
        these = rows.where(row_slices == name)
        sampled = prompts.where(prompt_slices == name)
        counts = {"prompts": sum(found == name for found in names.values()), "rows": len(these.labels)}
        metrics = {**reward_metrics(these, resampling), **sampling_metrics(sampled, resampling)}
        table += [
            {"slice": name, "metric": metric, **interval_json(interval), **counts}
            for metric, interval in sorted(metrics.items())
        ]
    return table


def _merged(slices: Mapping[str, str | None], *, max_slices: int) -> dict[str, str]:
    """The slice of each prompt, the smallest slices as one where there are too many."""
    found = [NO_SLICE if name is None else name for name in slices.values()]
    sizes = {name: found.count(name) for name in set(found)}
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    kept = set(largest if len(largest) <= max_slices else largest[: max_slices - 1])
    return {prompt_id: name if name in kept else OTHER_SLICES for prompt_id, name in zip(slices, found, strict=True)}


def _pair_wins(rows: ScoredRows) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """1, 1/2 or 0 for each whole pair, and its prompt."""
    sides: dict[str, dict[bool, int]] = {}
    for index, pair_id in enumerate(rows.pair_ids):
        if pair_id is not None:
            sides.setdefault(pair_id, {})[bool(rows.labels[index])] = index
    pairs = [(side[True], side[False]) for side in sides.values() if len(side) == 2]
    chosen, rejected = np.array(pairs, dtype=int).reshape(-1, 2).T
    wins = (np.sign(rows.rewards[chosen] - rows.rewards[rejected]) + 1) / 2
    return wins, rows.prompt_ids[chosen]


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def summary(
    rows: ScoredRows, prompts: SampledPrompts, bins: Sequence[Mapping[str, float]], resampling: Resampling
) -> dict[str, Any]:
    """All metrics over all prompts as finite JSON values, with the counts that they rest on."""
    metrics = nested({**reward_metrics(rows, resampling), **sampling_metrics(prompts, resampling)})
    if bins:
        metrics["ece"] = round(calibration_error(bins), 6)
    num_desired = int(rows.labels.sum())
    counts = {
        "rows": len(rows.labels),
        "desired": num_desired,
        "undesired": len(rows.labels) - num_desired,
        "sampled_prompts": len(prompts.prompt_ids),
    }
    return {**metrics, "counts": counts}


def interval_json(interval: Interval) -> dict[str, float]:
    """Value and ends in six digits, more than the data ever carry."""
    return {name: float(f"{number:.6g}") for name, number in interval._asdict().items()}


def nested(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    """Metrics as JSON values; "true_reward/gain" becomes an entry of an entry."""
    tree: dict[str, Any] = {}
    for name, interval in metrics.items():
        *folders, leaf = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = interval_json(interval)
    return tree
