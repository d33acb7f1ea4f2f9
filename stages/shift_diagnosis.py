"""Stage `shift_diagnosis`: why prompts of thumbs-up and thumbs-down rows differ, and which correction fits.

    dvc repro shift_diagnosis

The stage recommends and says why; what is applied stays the choice of `density_ratio.correction` in params.yaml.
Prompts are grouped by a column of the log, such as its topic. A log without one is grouped by how likely its prompts
are among desired rows, as judged by classifiers that haven't seen them: ten groups of equal size, from the prompts that
people like least to those that they like most. That is coarser, for unlike topics may share a group.
"""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from stages.contracts.artifact import read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.files import write_json
from stages.contracts.stage import Input, Output, Section, stage_main
from stages.rows.origins import log_column
from stages.rows.scored import scored_tokens


class ShiftDiagnosisParams(Section):
    """Section `shift_diagnosis` of params.yaml."""

    topic_column: str | None = "topic"
    """Column of the log to group prompts by; null groups by density ratio."""
    per_token: bool = True
    """Whether a completion's log-probability is the mean over its tokens, so that long answers don't look unlikely,
    or the sum."""
    num_quantile_groups: int = Field(10, gt=1)
    """Groups where there is no topic."""
    min_group_rows: int = Field(50, gt=0)
    """Rows that a group needs to count; of smaller ones the mean is mostly noise."""
    min_groups: int = Field(5, gt=1)
    """Groups needed to say anything about the cause."""
    min_prompts: int = Field(50, ge=0)
    """Prompts of either label needed to say anything: with 50, one or two of 100 simulated worlds get the wrong cause,
    with 20 up to a fifth (docs/experiments.md)."""
    min_auc: float = Field(0.55, ge=0.5, lt=1)
    """AUC below which there is no shift to speak of."""
    competence_correlation: float = Field(0.8, ge=-1, le=1)
    """Rank correlation from which the model's competence is the likely cause."""
    rater_bias_correlation: float = Field(0.6, ge=-1, le=1)
    """Rank correlation up to which the raters are; what lies between is unsure."""
    min_effective_share: float = Field(0.3, ge=0, le=1)
    """Effective share of undesired rows below which an offset is recommended rather than UDM's weights."""
    num_resamples: int = Field(1000, gt=0)
    """Resamples of prompts for the interval."""
    seed: int = 0
    """Seed of the resamples."""

    @model_validator(mode="after")
    def _has_band(self) -> Self:
        if self.competence_correlation < self.rater_bias_correlation:
            raise ValueError("competence_correlation is below rater_bias_correlation; raise it")
        return self


def run(
    *,
    completions: Input,
    tokens: Input,
    density_ratios: Input,
    density_metrics: Input,
    reference_logps: Input,
    metrics: Output,
    params: ShiftDiagnosisParams,
) -> None:
    """Read the shift beside the reference's log-probabilities over the labelled rows of the train split.

    Args:
        completions: `completions` artifact, for the topic of each row.
        tokens: `tokens` artifact, for its label and split.
        density_ratios: `density_ratios` artifact, to group prompts without topic.
        density_metrics: metrics of `density_ratio`: the size of the shift, and the correction that was applied.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        metrics: JSON to write: verdict, recommendation, reason, and the numbers behind them.
        params: grouping and thresholds.

    Raises:
        ContractError: an input is missing, damaged, or belongs to other tokens.
        ValueError: no labelled row is left, though the shift was measured.
    """
    from stages.measures.intervals import Interval
    from stages.udm.cause import Thresholds, diagnose, group_rows, rank_correlation

    shift = json.loads(density_metrics.read_text(encoding="utf-8"))
    if "not_measured" in shift:
        print(f"shift_diagnosis: nothing to explain: {shift['not_measured']}")
        write_json(metrics, {"verdict": "not_measured", "reason": shift["not_measured"]})
        return
    rows = _labelled_rows(tokens, reference_logps)
    grouped_by, names = "topic", _topics(rows, completions, params.topic_column)
    if not any(names):
        grouped_by, names = "density_ratio", _quantile_groups(rows, density_ratios, params.num_quantile_groups)
    rows = rows.filter(pa.array([name is not None for name in names]))
    chosen = [name for name in names if name is not None]
    labels = rows["label"].to_numpy().astype(bool)
    prompts = rows["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    sums = rows["reference_logps"].to_numpy().astype(np.float64)
    num_prompts = min(len(np.unique(prompts[labels == label])) for label in (True, False))
    groups, correlations = {}, {}
    for kind, logps in {"per_token": sums / np.maximum(rows["num_tokens"].to_numpy(), 1), "sum": sums}.items():
        groups[kind] = group_rows(chosen, labels, logps, min_rows=params.min_group_rows)
        correlations[kind] = rank_correlation(
            groups[kind], chosen, labels, logps, prompts, num_resamples=params.num_resamples, seed=params.seed
        )

    used = "per_token" if params.per_token else "sum"
    found = diagnose(
        auc=Interval(**shift["auc"]),
        effective_share=shift["effective_sample_share"]["udm_before_clamping"],
        correlation=correlations[used],
        num_groups=len(groups[used]),
        num_prompts=num_prompts,
        thresholds=Thresholds(
            competence=params.competence_correlation,
            rater_bias=params.rater_bias_correlation,
            min_auc=params.min_auc,
            min_groups=params.min_groups,
            min_effective_share=params.min_effective_share,
            min_prompts=params.min_prompts,
        ),
    )
    clamped = sum(shift["clamped_share"].values())
    if found.recommendation == "udm" and clamped:
        found = found._replace(reason=f"{found.reason}; {clamped:.0%} of their weights are clamped")
    agrees = shift["correction"] in found.fitting
    advice = f"; params.yaml has correction {shift['correction']}" + ("" if agrees else ", which doesn't fit that")
    print(f"shift_diagnosis: {found.verdict}, recommended correction {found.recommendation}{advice}. {found.reason}")
    write_json(
        metrics,
        {
            "verdict": found.verdict,
            "recommendation": found.recommendation,
            "reason": found.reason,
            "correction": shift["correction"],
            "correction_fits": agrees,
            "prompts_of_the_rarer_label": num_prompts,
            "grouped_by": grouped_by,
            "correlation": {kind: None if value is None else value._asdict() for kind, value in correlations.items()},
            "groups": {group.name: {k: v for k, v in group._asdict().items() if k != "name"} for group in groups[used]},
        },
    )


def _labelled_rows(tokens: Path, reference_logps: Path) -> pa.Table:
    """The labelled rows of the train split with their log-probability under the reference."""
    table = scored_tokens(tokens, reference_logps)
    labelled = table.filter(pc.and_(pc.is_valid(table["label"]), pc.equal(table["split"], "train")))
    if not len(labelled):
        raise ValueError(
            f"{tokens}: expected labelled rows in the train split, found none; there is no shift to explain"
        )
    return labelled


def _topics(rows: pa.Table, completions: Path, column: str | None) -> list[str | None]:
    """Value of the log's column for each row; None where a row has none."""
    if column is None:
        return [None] * len(rows)
    found = log_column(rows, completions, column)
    return [None if topic in {None, ""} else str(topic) for topic in map(_scalar, found)]


def _scalar(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _quantile_groups(rows: pa.Table, density_ratios: Path, num_groups: int) -> list[str | None]:
    """Groups of equally many rows by how likely a row's prompt is among desired ones."""
    table = read_table(density_ratios, DENSITY_RATIOS, columns=["prompt_id", "desirable_probability"])
    known = dict(zip(table["prompt_id"].to_pylist(), table["desirable_probability"].to_pylist(), strict=True))
    probabilities = np.array([known[prompt_id] for prompt_id in rows["prompt_id"].to_pylist()])
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, num_groups + 1)[1:-1]))
    return [f"group {place + 1:02d}" for place in np.searchsorted(edges, probabilities, side="right")]


if __name__ == "__main__":
    stage_main(run)
