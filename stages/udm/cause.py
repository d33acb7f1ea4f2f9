"""Why prompts of desired and undesired rows differ: because raters judge some harshly, or the model is worse at some.

How far the prompts differ doesn't tell the two apart. What does is whether the groups of prompts (topics) that get
fewer thumbs up are those whose answers the reference itself finds less likely: so it is where the model is worse at
some topics, and not where only the raters are harsher (a simulated world with known causes, correlation 1.00 against
-0.03). A model's confidence is an imperfect sign of its skill, so there is a band in which nothing is claimed.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from stages.measures.intervals import Interval, percentile_interval, resampled_sums

Floats = NDArray[np.float64]
# Where raters alone are to blame, all groups' answers are about as likely, so that their ranks are chance and a 95 %
# interval over few groups spans nearly everything. In simulated worlds of eight topics with 50 rows each, this level
# named rater bias in 19 of 20 and took a model's fault for it in one of 20.
_LEVEL = 0.8
Verdict = Literal["no_shift", "competence", "rater_bias", "unsure", "cannot_tell"]


class Group(NamedTuple):
    """Rows of one group of prompts."""

    name: str
    num_rows: int
    up_rate: float
    """Share of desired rows."""
    mean_logp: float
    """Mean log-probability of the completions under the reference, nats."""


class Thresholds(NamedTuple):
    """From where on something is claimed."""

    competence: float
    """Correlation from which the model's competence is the likely cause."""
    rater_bias: float
    """Correlation up to which the raters are."""
    min_auc: float
    """AUC of the classifier below which prompts don't differ enough to matter."""
    min_groups: int
    """Groups that a correlation needs."""
    min_effective_share: float
    """Effective share of undesired rows below which UDM's weights leave too little of them."""
    min_prompts: int
    """Prompts of either label below which nothing can be told."""


class Diagnosis(NamedTuple):
    """What is likely, what follows, and why."""

    verdict: Verdict
    recommendation: Literal["none", "udm", "offset"]
    fitting: tuple[str, ...]
    """All corrections that fit the verdict."""
    reason: str


def group_rows(names: Sequence[str], labels: NDArray[np.bool_], logps: Floats, *, min_rows: int) -> list[Group]:
    """Up-rate and mean log-probability of each group with enough rows, by name.

    Args:
        names: group of each row. Length n.
        labels: whether each row is desired. Shape (n,).
        logps: of each row's completion under the reference, a sum or a mean over its tokens. Shape (n,).
        min_rows: smaller groups are left out, for their rates are noise.
    """
    array = np.asarray(names)
    groups = []
    for name in np.unique(array):
        inside = array == name
        if inside.sum() >= min_rows:
            groups.append(
                Group(str(name), int(inside.sum()), float(labels[inside].mean()), float(logps[inside].mean()))
            )
    return groups


def rank_correlation(
    groups: Sequence[Group],
    names: Sequence[str],
    labels: NDArray[np.bool_],
    logps: Floats,
    prompts: NDArray[np.int64],
    *,
    num_resamples: int,
    seed: int,
) -> Interval | None:
    """Spearman correlation over groups between up-rate and mean log-probability; the 80 % interval draws prompts.

    Args:
        groups: what `group_rows` gave for the same rows.
        names: group of each row. Length n.
        labels: whether each row is desired. Shape (n,).
        logps: as given to `group_rows`. Shape (n,).
        prompts: prompt of each row. Shape (n,).
        num_resamples: how often prompts are drawn.
        seed: of the draws.

    Returns:
        None where it isn't defined: fewer than two groups, or all groups alike in one of the two.
    """
    value = _spearman(
        np.array([[group.up_rate for group in groups]]), np.array([[group.mean_logp for group in groups]])
    )[0]
    if not np.isfinite(value):
        return None
    inside = np.asarray(names)[:, None] == np.array([group.name for group in groups])  # (n, groups)
    columns = np.concatenate([inside, inside & labels[:, None], inside * logps[:, None]], axis=1).astype(np.float64)
    sums = resampled_sums(columns, prompts, num_resamples=num_resamples, seed=seed)
    counts, ups, totals = np.split(sums, 3, axis=1)
    # A resample without rows of some group has no correlation over all groups.
    complete = (counts > 0).all(axis=1)
    resampled = _spearman(ups[complete] / counts[complete], totals[complete] / counts[complete])
    return percentile_interval(float(value), resampled, level=_LEVEL)


def _spearman(left: Floats, right: Floats) -> Floats:
    """Rank correlation of each row of `left` with the same row of `right`; nan where one is constant."""
    ranks = [rankdata(side, axis=1) if side.size else side for side in (left, right)]
    centred = [side - side.mean(axis=1, keepdims=True) if side.size else side for side in ranks]
    norms = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    products = (centred[0] * centred[1]).sum(axis=1)
    correlations: Floats = np.divide(products, norms, out=np.full(len(norms), np.nan), where=norms > 0)
    return correlations


def diagnose(
    *,
    auc: Interval,
    effective_share: float,
    correlation: Interval | None,
    num_groups: int,
    num_prompts: int,
    thresholds: Thresholds,
) -> Diagnosis:
    """The likely cause of a shift, and the correction that fits it.

    Args:
        auc: of the classifier that tells desired prompts from undesired ones, on prompts that it hasn't seen.
        effective_share: effective share of the undesired rows under UDM's weights, before these are clamped.
        correlation: of up-rate and mean log-probability over groups; None if undefined.
        num_groups: groups that it is taken over.
        num_prompts: prompts with a row of the rarer label.
        thresholds: from where on something is claimed.
    """
    if num_prompts < thresholds.min_prompts:
        reason = (
            f"{num_prompts} prompts have a row of the rarer label, and below {thresholds.min_prompts} chance names a "
            "cause as often as not; collect more feedback (shift_diagnosis.min_prompts)"
        )
        return Diagnosis("cannot_tell", "none", ("none",), reason)
    if auc.value < thresholds.min_auc or auc.low <= 0.5:
        reason = f"prompts of desired and undesired rows hardly differ (held-out AUC {auc.value:.2f})"
        return Diagnosis("no_shift", "none", ("none",), reason)
    if correlation is None or num_groups < thresholds.min_groups:
        reason = (
            f"prompts differ (AUC {auc.value:.2f}), but {num_groups} groups of prompts are too few, or too much alike, "
            "to say why; name a column of topics in shift_diagnosis.topic_column, or collect more feedback"
        )
        return Diagnosis("unsure", "none", ("none",), reason)
    measured = (
        f"over {num_groups} groups of prompts, the rank correlation of up-rate and the reference's log-probability is "
        f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"
    )
    if correlation.value >= thresholds.competence and correlation.low > thresholds.rater_bias:
        reason = (
            f"{measured}: groups with fewer thumbs up are those that the model is worse at, so undesired rows are the "
            "signal and weighting them away would lose it"
        )
        return Diagnosis("competence", "none", ("none",), reason)
    if correlation.value <= thresholds.rater_bias and correlation.high < thresholds.competence:
        return _rater_bias(measured, effective_share, thresholds)
    reason = f"{measured}: that fits neither raters who are harsher on some groups nor a model that is worse at some"
    return Diagnosis("unsure", "none", ("none",), reason)


def _rater_bias(measured: str, effective_share: float, thresholds: Thresholds) -> Diagnosis:
    fitting = ("udm", "offset", "deployment")
    reason = (
        f"{measured}: groups with fewer thumbs up aren't those that the model is worse at, so raters are harsher there"
    )
    if effective_share < thresholds.min_effective_share:
        reason += f"; UDM's weights would leave {effective_share:.0%} of the undesired rows, an offset keeps all"
        return Diagnosis("rater_bias", "offset", fitting, reason)
    reason += f"; UDM's weights leave {effective_share:.0%} of the undesired rows, which is enough"
    return Diagnosis("rater_bias", "udm", fitting, reason)
