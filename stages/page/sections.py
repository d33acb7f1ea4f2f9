"""What each section of the report says, from the metrics and tables that the stages wrote."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from stages.page.charts import (
    Estimate,
    Series,
    calibration_chart,
    forest_chart,
    graph_picture,
    interval_text,
    line_chart,
    number,
    scatter_chart,
    share_chart,
)

Rows = Sequence[Mapping[str, Any]]

# What keeps the page small whatever stands in the log.
MAX_TEXT = 800
MAX_NAME = 60
MAX_SAMPLES = 4
# HTML has no place for these, not even escaped.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_NAMES = {
    "true_reward/gain": "gain in true reward",
    "true_reward/policy": "true reward, policy",
    "true_reward/reference": "true reward, start",
    "win_rate": "win rate against the start",
    "accuracy": "accuracy of the implicit reward",
    "auc": "AUC of the implicit reward",
    "pair_accuracy": "accuracy on pairs",
    "margin": "margin, desired minus undesired",
    "brier": "Brier score",
    "kl": "KL to the start, nats",
    "length/policy": "length of answers, policy",
    "length/reference": "length of answers, start",
}
# Forest charts by slice, with the value that means no effect.
_FORESTS = (("true_reward/gain", 0.0), ("win_rate", 0.5), ("auc", 0.5), ("kl", 0.0))

_COLUMNS = (
    ("feedback log",),
    ("ingestion", "base_model"),
    ("normalization",),
    ("tokenization", "prompt_embedding"),
    ("reference_logprobs", "density_ratio"),
    ("rows", "shift_diagnosis"),
    ("training",),
    ("evaluation",),
    ("gate", "report"),
)
_EDGES = (
    ("feedback log", "ingestion"),
    ("ingestion", "normalization"),
    ("base_model", "normalization"),
    ("normalization", "tokenization"),
    ("normalization", "prompt_embedding"),
    ("tokenization", "reference_logprobs"),
    ("tokenization", "density_ratio"),
    ("prompt_embedding", "density_ratio"),
    ("reference_logprobs", "rows"),
    ("density_ratio", "rows"),
    ("rows", "training"),
    ("reference_logprobs", "shift_diagnosis"),
    ("density_ratio", "shift_diagnosis"),
    ("training", "evaluation"),
    ("evaluation", "gate"),
    ("evaluation", "report"),
    ("shift_diagnosis", "report"),
)


class Tile(NamedTuple):
    """A number with its name and what stands below it."""

    name: str
    value: str
    detail: str


class Verdict(NamedTuple):
    """What the page says first."""

    kind: Literal["better", "worse", "unsure"]
    headline: str
    sentences: list[str]
    tiles: list[Tile]


def estimate(metrics: Mapping[str, Any], name: str) -> Estimate | None:
    """The metric at a path such as "true_reward/gain"; None if it wasn't measured."""
    found: Any = metrics
    for part in name.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    return Estimate(_NAMES.get(name, name), found["value"], found["low"], found["high"])


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the policy got better, in plain words.

    Args:
        metrics: of the stage `evaluation`.
    """
    gain, auc = estimate(metrics, "true_reward/gain"), estimate(metrics, "auc")
    sentences = []
    if gain is not None:
        kind, headline = _judged(gain)
        policy, start = estimate(metrics, "true_reward/policy"), estimate(metrics, "true_reward/reference")
        prompts = metrics["counts"]["sampled_prompts"]
        if policy is not None and start is not None:
            sentences.append(
                f"Over {prompts:,} held-out prompts, its answers have a true reward of {number(policy.value)} on "
                f"average, those of the start {number(start.value)}: a difference of "
                f"{interval_text(gain, signed=True)}."
            )
    else:
        kind, headline = _unjudged(auc)
        sentences.append("No judge was named, so whether its own answers are better was not measured.")
    won = estimate(metrics, "win_rate")
    if won is not None:
        sentences.append(
            f"Of pairs of answers to the same prompt, it wins {percent(won.value)} "
            f"({percent(won.low)} to {percent(won.high)}), ties counted half."
        )
    kl = estimate(metrics, "kl")
    if kl is not None:
        sentences.append(
            f"It is {interval_text(kl)} nats of KL per answer away from the start. "
            f"The intervals in brackets cover {percent(0.95)}."
        )
    return Verdict(kind, headline, sentences, _verdict_tiles(metrics))


def _judged(gain: Estimate) -> tuple[Literal["better", "worse", "unsure"], str]:
    if gain.low > 0:
        return "better", "The policy answers better than its start"
    if gain.high < 0:
        return "worse", "The policy answers worse than its start"
    return "unsure", "It is not shown that the policy answers better than its start"


def _unjudged(auc: Estimate | None) -> tuple[Literal["better", "worse", "unsure"], str]:
    if auc is not None and auc.low > 0.5:
        return "better", "The policy tells desired from undesired answers on prompts that it has not seen"
    if auc is not None and auc.high < 0.5:
        return "worse", "The policy prefers undesired answers on prompts that it has not seen"
    return "unsure", "It is not shown that the policy has learned what people prefer"


def _verdict_tiles(metrics: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for name in ("true_reward/gain", "win_rate", "auc", "accuracy", "kl", "length/policy"):
        found = estimate(metrics, name)
        if found is None:
            continue
        detail = f"{number(found.low)} to {number(found.high)}"
        start = estimate(metrics, "length/reference")
        if name == "length/policy" and start is not None:
            detail += f"; start {number(start.value)}"
        tiles.append(Tile(found.label, number(found.value, signed=name.endswith("gain")), detail))
    return tiles


def results(metrics: Mapping[str, Any], by_slice: Rows, calibration: Rows) -> dict[str, Any]:
    """Charts and tables of the evaluation.

    Args:
        metrics: of the stage `evaluation`.
        by_slice: rows of its by_slice.csv.
        calibration: rows of its calibration.csv.
    """
    counts = metrics["counts"]
    charts = [
        chart for name, zero in _FORESTS if (chart := _forest(name, zero, metrics, by_slice, limit=21)) is not None
    ]
    if calibration:
        bins = [Estimate("", row["observed"], row["low"], row["high"]) for row in calibration]
        charts.append(
            calibration_chart(
                "Calibration of the implicit reward",
                bins,
                [row["predicted"] for row in calibration],
                description="Observed share of desired rows over the probability that the policy gives them; "
                "points on the diagonal are calibrated.",
            )
        )
    shown = [found for name in _NAMES if (found := estimate(metrics, name)) is not None]
    share = counts["desired"] / counts["rows"] if counts["rows"] else 0.0
    intro = (
        f"{counts['rows']:,} labelled rows ({counts['desired']:,} desired, {counts['undesired']:,} undesired; always "
        f"guessing the larger class is right for {percent(max(share, 1 - share))}), and "
        f"{counts['samples_per_prompt']} answers of each model to each of {counts['sampled_prompts']:,} prompts. "
        "None of them was trained on. Dots are estimates, lines their 95 % intervals, which rest on drawing prompts "
        "with replacement; the dashed line means no effect."
    )
    return {
        "intro": intro,
        "charts": charts,
        "rows": [(found.label, number(found.value), _range(found)) for found in shown],
        "slice_rows": [
            (
                short(row["slice"], MAX_NAME),
                _NAMES.get(row["metric"], row["metric"]),
                number(row["value"]),
                _row_range(row),
                row["prompts"],
            )
            for row in by_slice
        ],
    }


def _forest(name: str, zero: float, metrics: Mapping[str, Any], by_slice: Rows, *, limit: int) -> Markup | None:
    overall = estimate(metrics, name)
    if overall is None:
        return None
    slices = [
        Estimate(short(row["slice"], MAX_NAME), row["value"], row["low"], row["high"])
        for row in by_slice
        if row["metric"] == name
    ]
    slices.sort(key=lambda row: -row.value)
    title = _NAMES[name][:1].upper() + _NAMES[name][1:]
    return forest_chart(
        title,
        [overall._replace(label="all"), *slices[:limit]],
        x_label=_NAMES[name],
        zero=zero,
        description=f"{title}: all prompts {interval_text(overall)}"
        + "".join(f"; {row.label} {interval_text(row)}" for row in slices[:limit]),
    )


def data(normalization: Mapping[str, Any], tokenization: Mapping[str, Any]) -> dict[str, Any]:
    """What became of each row of the log.

    Args:
        normalization: metrics of that stage.
        tokenization: metrics of that stage.
    """
    read, kept = normalization["rows_read"], normalization["rows_kept"]
    merged, refused = normalization["duplicates"], normalization["rejects"]
    whole = max(read, 1)
    does_add_up = read == kept + merged + refused
    sentence = f"Of {read:,} rows read, {kept:,} were kept, {merged:,} were duplicates and {refused:,} were refused" + (
        "." if does_add_up else "; THESE COUNTS DO NOT ADD UP."
    )
    notes = []
    splits = normalization.get("splits", {})
    if splits:
        notes.append(
            "Split by prompt: " + ", ".join(f"{count:,} rows {name}" for name, count in sorted(splits.items())) + "."
        )
    notes += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in normalization.get("warnings", [])]
    groups = normalization.get("split_groups", {})
    largest, torn = groups.get("largest_share", 0.0), groups.get("torn_by_prompt", {})
    if torn.get("groups"):
        notes.append(
            f"A split by exact prompt would have had rows of {torn['groups']:,} conversations or like prompts, "
            f"{torn['rows']:,} rows together, on both sides; here each of them stands on one."
        )
    if largest > 0.5 and not normalization.get("warnings"):
        notes.append(
            f"One group of prompts that are one by normalization.twins, or of one value of group_by, holds "
            f"{percent(largest, 1)} of the rows, all on one side, so that held-out rows say little of the others."
        )
    labels = normalization.get("labels", {})
    if labels:
        notes.append("Labels: " + ", ".join(f"{count:,} {name}" for name, count in sorted(labels.items())) + ".")
    if tokenization.get("truncated"):
        truncated, encoded = tokenization["truncated"], tokenization["rows_kept"]
        notes.append(f"{truncated:,} of {encoded:,} rows ({percent(truncated / encoded, 1)}) were cut to fit.")
    else:
        notes.append(f"No row had to be cut; {tokenization['rows_kept']:,} rows were encoded.")
    reasons = [
        (reason.replace("_", " "), stage, f"{count:,}")
        for stage, metrics in (("normalization", normalization), ("tokenization", tokenization))
        for reason, count in sorted(metrics["reject_reasons"].items(), key=lambda item: (-item[1], item[0]))
    ]
    parts = [("kept", kept), ("merged", merged), ("refused", refused)]
    names = {"kept": "kept", "merged": "duplicates", "refused": "refused"}
    return {
        "sentence": sentence,
        "bar": [(kind, f"{100 * count / whole:.2f}") for kind, count in parts],
        "rows": [
            ("read", f"{read:,}", ""),
            *((names[kind], f"{count:,}", percent(count / whole, 1)) for kind, count in parts),
        ],
        "reasons": reasons,
        "notes": notes,
    }


def shift(density: Mapping[str, Any], diagnosis: Mapping[str, Any], ratios: Rows, reliability: Rows) -> dict[str, Any]:
    """How prompts of the two labels differ and what to do about it.

    Args:
        density: metrics of `density_ratio`.
        diagnosis: metrics of `shift_diagnosis`.
        ratios: rows of weights.csv.
        reliability: rows of reliability.csv.
    """
    if density.get("not_measured"):
        why = {"diagnosis": "Not measured.", "recommendation": "", "reason": density["not_measured"]}
        return {"tiles": [], "charts": [], "rows": [], **why}
    auc = density["auc"]
    shares = density["effective_sample_share"]
    clamped = density["clamped_share"]
    tiles = [
        Tile("AUC of the classifier", number(auc["value"]), f"{_row_range(auc)}; 0.5 means no shift"),
        Tile("effective rows under UDM", percent(shares["udm"]), "of the undesired rows"),
        Tile("clamped ratios", percent(clamped["low"]), f"at the lower end, {percent(clamped['high'])} at the upper"),
        Tile("correction", density["correction"], "as params.yaml has it"),
    ]
    groups = diagnosis["groups"]
    charts = []
    if groups:
        charts.append(
            scatter_chart(
                "Thumbs up by " + str(diagnosis["grouped_by"]).replace("_", " "),
                [
                    (short(name, MAX_NAME), group["mean_logp"], group["up_rate"])
                    for name, group in sorted(groups.items())
                ],
                x_label="mean log-probability under the reference",
                y_label="share of thumbs up",
                description="Share of thumbs up over the reference's mean log-probability, per group of prompts. "
                "If less likely groups get fewer thumbs up, the model is worse there; if not, people are harsher.",
            )
        )
    lines = [
        Series(label, [(row["share"], row["density_ratio"]) for row in ratios if row["label"] == label])
        for label in dict.fromkeys(row["label"] for row in ratios)
    ]
    charts.append(
        share_chart(
            "Density ratio of prompts",
            lines,
            x_label="density ratio (logarithmic)",
            description="Share of rows whose prompt has at most a density ratio, by label.",
        )
    )
    charts.append(
        calibration_chart(
            "Calibration of the classifier",
            [Estimate("", row["observed"], row["observed"], row["observed"]) for row in reliability],
            [row["predicted"] for row in reliability],
            description="Observed share of desired rows over the classifier's probability.",
        )
    )
    if cut := density.get("prompts_cut"):
        tiles.append(Tile("prompts cut", percent(cut["share"], 1), "longer than the encoder reads"))
    return {
        "tiles": tiles,
        "charts": charts,
        "diagnosis": f"Likely cause: {str(diagnosis['verdict']).replace('_', ' ')}. "
        f"Recommended correction: {diagnosis['recommendation']}.",
        "recommendation": f"params.yaml has correction {diagnosis['correction']}, which "
        + ("fits." if diagnosis["correction_fits"] else "does not fit; set density_ratio.correction."),
        "reason": f"Why: {diagnosis['reason']}.",
        "rows": [
            (short(name, MAX_NAME), f"{group['num_rows']:,}", percent(group["up_rate"]), number(group["mean_logp"]))
            for name, group in sorted(groups.items())
        ],
    }


def training(metrics: Mapping[str, Any], curves: Rows, *, beta: float | None) -> dict[str, Any]:
    """Curves, and what in them deserves attention.

    Args:
        metrics: of the stage `training`.
        curves: rows of its curves; entries are None where nothing was logged.
        beta: scale of the reward.
    """
    rows = metrics["rows"]
    charts = curve_charts(
        curves,
        (
            ("Loss", ("loss",), "loss"),
            ("Implicit reward", ("rewards/chosen", "rewards/rejected"), "reward"),
            ("Margin", ("rewards/margins",), "margin"),
            ("Log-probability of completions", ("logps/chosen", "logps/rejected"), "nats"),
            ("Pairs told apart", ("rewards/accuracies",), "share of pairs"),
            ("Reward shift (delta)", ("delta",), "reward"),
            ("Reward", ("reward", "held_out_reward", "best_reward"), "reward"),
            ("KL to the start, as estimated", ("kl",), "nats"),
        ),
    )
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in rows.items() if count)
    scale = "" if beta is None else f", beta {beta:g}"
    intro = f"{str(metrics['method']).upper()}: {counts}; {metrics['steps']:,} steps{scale}."
    return {"intro": intro, "charts": charts, "notes": _training_notes(metrics["last"], beta)}


def curve_charts(curves: Rows, charts: Iterable[tuple[str, Sequence[str], str]], *, over: str = "step") -> list[Markup]:
    """A chart of each group of columns that holds any numbers.

    Args:
        curves: rows of a training's curves; entries are None where nothing was logged.
        charts: title, columns and unit of each.
        over: the column of the horizontal axis.
    """
    drawn = []
    for title, columns, y_label in charts:
        series = [
            Series(_CURVES.get(name, name), [(row[over], row[name]) for row in curves if row.get(name) is not None])
            for name in columns
        ]
        series = [line for line in series if line.points]
        if series:
            ends = "; ".join(
                f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in series
            )
            drawn.append(line_chart(title, series, x_label=over, y_label=y_label, description=f"{title}: {ends}."))
    return drawn


_CURVES = {
    "rewards/chosen": "desired",
    "rewards/rejected": "undesired",
    "logps/chosen": "desired",
    "logps/rejected": "undesired",
}


def _training_notes(last: Mapping[str, float], beta: float | None) -> list[str]:
    notes = []
    desired, margin = last.get("rewards/chosen"), last.get("rewards/margins")
    if desired is not None and desired < 0:
        nats = f", by {number(-desired / beta)} nats per answer" if beta else ""
        notes.append(
            f"Desired answers are less likely at the end than under the start{nats}: the policy lowers undesired ones "
            "and loses desired ones with them. A lower learning rate, fewer steps or a larger beta keeps more of them."
        )
    if margin is not None and margin <= 0:
        notes.append("Desired answers are not rewarded above undesired ones at the end of training.")
    return notes


def answer_groups(generations: Rows, *, num_examples: int) -> list[dict[str, Any]]:
    """Prompts to show: the largest gains, the largest losses, and some by hash; by hash alone without scores.

    Args:
        generations: rows of the artifact.
        num_examples: prompts shown, at most.
    """
    by_chance = sorted(generations, key=lambda row: hashlib.sha256(row["prompt_id"].encode()).hexdigest())
    scored = [row for row in by_chance if row["policy_scores"] is not None]
    chosen: list[tuple[str, Rows]] = []
    if scored:
        third = num_examples // 3
        ranked = sorted(scored, key=_gain)
        chosen.append(("Largest gains", [row for row in ranked[::-1][:third] if _gain(row) > 0]))
        chosen.append(("Largest losses", [row for row in ranked[:third] if _gain(row) < 0]))
    seen = {row["prompt_id"] for _, rows in chosen for row in rows}
    rest = [row for row in by_chance if row["prompt_id"] not in seen]
    chosen.append(("Picked by chance", rest[: max(0, num_examples - len(seen))]))
    return [{"name": name, "examples": [_example(row) for row in rows]} for name, rows in chosen if rows]


def _gain(row: Mapping[str, Any]) -> float:
    policy, reference = row["policy_scores"], row["reference_scores"]
    return float(sum(policy) / len(policy) - sum(reference) / len(reference))


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": short(row["prompt"]),
        "slice": short(row["slice"] or "", MAX_NAME),
        "policy": _samples(row["policy"], row["policy_scores"]),
        "reference": _samples(row["reference"], row["reference_scores"]),
    }


def _samples(texts: Sequence[str], scores: Sequence[float] | None) -> list[dict[str, Any]]:
    shown = [None] * len(texts) if scores is None else [f"{score:.2f}" for score in scores]
    pairs = list(zip(texts, shown, strict=True))[:MAX_SAMPLES]
    return [{"text": short(text) or "(empty)", "score": score} for text, score in pairs]


def short(text: str, limit: int = MAX_TEXT) -> str:
    """A text as the page can hold it: without control characters, and cut behind `limit` of its own."""
    text = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.strip())
    return text if len(text) <= limit else f"{text[:limit]} \u2026 ({len(text) - limit:,} more characters)"


def graph() -> Markup:
    """The picture of the stages."""
    steps = "; ".join(f"{source} feeds {target}" for source, target in _EDGES)
    return graph_picture(_COLUMNS, _EDGES, description=f"Graph of the stages: {steps}.")


def percent(share: float, decimals: int = 0) -> str:
    """A share as people read it."""
    # A no-break space, or the sign could begin a line.
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _range(found: Estimate) -> str:
    return f"{number(found.low)} to {number(found.high)}"


def _row_range(row: Mapping[str, Any]) -> str:
    return f"{number(row['low'])} to {number(row['high'])}"
