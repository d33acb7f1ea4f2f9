"""What the sections of a report on a reward model say."""

from collections.abc import Mapping
from typing import Any, Literal

from stages.page.charts import Estimate, calibration_chart, forest_chart, number
from stages.page.sections import MAX_NAME, Rows, Tile, Verdict, curve_charts, estimate, percent, short

_TILES = (
    ("accuracy", "pairs ranked as people did"),
    ("margin", "chosen score above rejected"),
    ("loss", "held-out loss"),
)


def reward_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether the reward model agrees with people, in plain words.

    Args:
        metrics: of the stage `reward_evaluation`.
    """
    accuracy = estimate(metrics, "accuracy")
    if accuracy is None:
        raise KeyError("accuracy")
    counts = metrics["counts"]
    agreement = (
        f"Of {counts['pairs']:,} held-out pairs on {counts['prompts']:,} prompts it gives the higher score to what "
        f"people chose in {percent(accuracy.value)} ({percent(accuracy.low)} to {percent(accuracy.high)}); a coin has "
        f"{percent(0.5)}. The interval in brackets covers {percent(0.95)}."
    )
    sureness = (
        f"How sure its scores say it is differs from how often it is right by {number(metrics['ece'])} on average."
    )
    tiles = [
        Tile(title, number(found.value), interval(found))
        for name, title in _TILES
        if (found := estimate(metrics, name)) is not None
    ]
    kind, headline = _judged(accuracy)
    tiles.append(Tile("calibration error", number(metrics["ece"]), "0 is best"))
    return Verdict(kind, headline, [agreement, sureness], tiles)


def _judged(accuracy: Estimate) -> tuple[Literal["better", "worse", "unsure"], str]:
    if accuracy.low > 0.5:
        return "better", "The reward model ranks answers as people do more often than chance"
    if accuracy.high < 0.5:
        return "worse", "The reward model prefers what people rejected"
    return "unsure", "It is not shown that the reward model agrees with people"


def reward_results(metrics: Mapping[str, Any], calibration: Rows, by_length: Rows, by_slice: Rows) -> dict[str, Any]:
    """Charts and tables of the evaluation.

    Args:
        metrics: of the stage `reward_evaluation`.
        calibration: rows of its calibration.csv.
        by_length: rows of its by_length.csv.
        by_slice: rows of its by_slice.csv.
    """
    charts = []
    if calibration:
        charts.append(
            calibration_chart(
                "Calibration of the scores",
                [Estimate("", row["observed"], row["low"], row["high"]) for row in calibration],
                [row["predicted"] for row in calibration],
                description="Share of pairs in which people chose the first answer over the probability that the "
                "scores give it; points on the diagonal are calibrated.",
            )
        )
    lengths = [Estimate(_length_name(row), row["accuracy"], row["low"], row["high"]) for row in by_length]
    slices = [
        Estimate(short(str(row["slice"]), MAX_NAME), row["value"], row["low"], row["high"])
        for row in by_slice
        if row["metric"] == "accuracy"
    ]
    for title, estimates in (("Accuracy by how much longer the chosen answer is", lengths), ("By slice", slices)):
        if estimates:
            description = f"{title}: estimates with their intervals; the dashed line is chance."
            charts.append(forest_chart(title, estimates, x_label="accuracy", zero=0.5, description=description))
    found = [(name, estimate(metrics, name)) for name in _shown(metrics)]
    rows = [
        (name.replace("/", " of "), number(f.value), f"{number(f.low)} to {number(f.high)}") for name, f in found if f
    ]
    return {"charts": charts, "rows": rows}


def interval(found: Estimate) -> str:
    """Bounds of an estimate as a table shows them."""
    return f"{number(found.low)} to {number(found.high)}"


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    return ["accuracy", "margin", "loss", "brier", *(f"length/{side}" for side in metrics.get("length", {}))]


def _length_name(row: Mapping[str, Any]) -> str:
    low, high = int(row["difference_low"]), int(row["difference_high"])
    return f"{low:+d} tokens" if low == high else f"{low:+d} to {high:+d} tokens"


def reward_training(metrics: Mapping[str, Any], curves: Rows) -> dict[str, Any]:
    """What was trained on, and the curves.

    Args:
        metrics: of the stage `training`.
        curves: rows of its curves.
    """
    counts = metrics["rows"]
    left_out = counts["pairs_with_prompts_cut_differently"]
    intro = (
        f"{counts['pairs']:,} pairs, {counts['pairs_given']:,} of them given by the log and "
        f"{counts['pairs_from_votes']:,} made of votes on one prompt, in {metrics['steps']:,} steps. "
        f"{counts['rows_without_partner']:,} rows had no partner, {counts['without_label']:,} no label, and "
        f"{left_out:,} pairs were left out as their prompts were cut differently."
    )
    charts = [
        ("Loss", ["loss"], "nats per pair"),
        ("Accuracy", ["accuracy"], "share of pairs"),
        ("Scores", ["rewards/chosen", "rewards/rejected"], "score"),
    ]
    return {"intro": intro, "charts": curve_charts(curves, charts)}
