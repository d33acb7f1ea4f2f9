"""Stage `density_ratio`: how much likelier each prompt is among desired rows than among undesired ones.

    dvc repro density_ratio
    dvc exp run -S density_ratio.correction=offset

Where people's judgement differs by prompt (a rater who is harsher on some topics), a classifier of desired and
undesired rows learns to tell prompts apart instead of answers. This stage measures how far the prompts differ and
fills in what the chosen correction does about it: underlying distribution matching (UDM) of Jung et al. 2024,
https://arxiv.org/abs/2404.04656, or one of its relatives. `shift_diagnosis` says which fits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stages.contracts.artifact import read_manifest, read_table, write_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.files import write_json, write_text
from stages.contracts.prompt_embeddings import PROMPT_EMBEDDINGS
from stages.contracts.stage import Input, Output, Section, stage_main
from stages.contracts.tokens import TOKENS

if TYPE_CHECKING:
    from stages.udm.correction import Feedback


class DensityRatioParams(Section):
    """Section `density_ratio` of params.yaml."""

    correction: Literal["none", "udm", "offset", "deployment"] = "none"
    """`udm` weighs undesired rows by the ratio; `offset` adds its logarithm to the loss's logit; `deployment` weighs
    rows of both labels towards all prompts served; `none` measures only."""
    prompt_sample_size: int = Field(1024, gt=0)
    """Rows of each label that a classifier is fitted on, at most."""
    min_density_ratio: float = Field(0.5, gt=0)
    """Lower clamp of ratios and weights."""
    max_density_ratio: float = Field(10.0, gt=0)
    """Upper clamp of ratios and weights."""
    num_folds: int = Field(5, gt=0)
    """Groups of prompts for cross-fitting: a prompt is judged by a classifier fitted on the others. 1 for none."""
    standardize: bool = False
    """Whether to bring embeddings to mean 0 and variance 1 first; on real feedback it lowered the held-out AUC."""
    parity: bool = False
    """Draw with replacement and fit once on all rows drawn, as TRL 0.21 does."""
    seed: int = 0
    """Seed of the draw of rows."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_density_ratio < self.min_density_ratio:
            raise ValueError("max_density_ratio is below min_density_ratio; raise it")
        if self.parity and self.correction in {"offset", "deployment"}:
            raise ValueError(f"parity: true knows no correction {self.correction}; choose none or udm")
        return self


def run(
    *,
    tokens: Input,
    prompt_embeddings: Input,
    density_ratios: Output,
    classifier: Output,
    metrics: Output,
    plots: Output,
    params: DensityRatioParams,
) -> None:
    """Fit the classifier on labelled prompts of the train split; write each prompt's ratio, weights and offset.

    Prompts that the classifiers were fitted on are judged by the one whose fold they are in, all others (unlabelled,
    held out, not drawn) by the one fitted on all rows drawn. Every row counts alike, so a prompt with more rows
    counts more.

    With too little feedback of one label nothing is measured: every weight is 1, and metrics and artifact say why. What
    learns from the weights refuses them then.

    Args:
        tokens: `tokens` artifact, for the prompt, label and split of each row.
        prompt_embeddings: `prompt_embeddings` artifact. Prompts that have no row in `tokens` count as served once.
        density_ratios: `density_ratios` artifact to write, in the order of `prompt_embeddings`.
        classifier: JSON to write, the classifiers as plain arrays.
        metrics: JSON to write.
        plots: folder to write, with `reliability.csv` and `weights.csv`.
        params: correction, sample, folds and clamps.

    Raises:
        ContractError: an input is missing, damaged or of another version.
        ValueError: the embeddings lack a prompt.
    """
    from scipy.special import expit

    from stages.udm.classifier import save_classifier
    from stages.udm.correction import Corrections, NotMeasuredError, correct, fit
    from stages.udm.diagnostics import calibration, ratio_quantiles, shift_metrics

    feedback = _feedback(tokens, prompt_embeddings)
    facts: dict[str, Any] = {"correction": params.correction, "parity": params.parity}
    if num_cut := read_manifest(prompt_embeddings, PROMPT_EMBEDDINGS)["meta"].get("prompts_cut"):
        facts["prompts_cut"] = {"number": num_cut, "share": num_cut / len(feedback.prompt_ids)}
    plots.mkdir(parents=True, exist_ok=True)
    try:
        fitted = fit(
            feedback,
            correction=params.correction,
            sample_size=params.prompt_sample_size,
            num_folds=params.num_folds,
            standardize=params.standardize,
            seed=params.seed,
            parity=params.parity,
        )
    except NotMeasuredError as error:
        facts["not_measured"] = str(error)
        print(f"density_ratio: not measured: {error}")
        ones = np.ones(len(feedback.prompt_ids))
        neutral = Corrections(0 * ones, ones, ones, ones, 0 * ones)
        write_table(density_ratios, _table(feedback.prompt_ids, neutral), DENSITY_RATIOS, meta=facts)
        write_json(classifier, facts)
        write_json(metrics, facts)
        for name in ("reliability.csv", "weights.csv"):
            write_text(plots / name, "")
        return
    corrections = correct(
        fitted,
        feedback.embeddings,
        correction=params.correction,
        minimum=params.min_density_ratio,
        maximum=params.max_density_ratio,
    )
    write_table(density_ratios, _table(feedback.prompt_ids, corrections), DENSITY_RATIOS)
    save_classifier(classifier, fitted.desired, **fitted.served)

    clamps = {"minimum": params.min_density_ratio, "maximum": params.max_density_ratio}
    found = shift_metrics(feedback, fitted, corrections, **clamps, seed=params.seed)
    write_json(metrics, {**facts, **found})
    labels = feedback.labels
    reliability = calibration(expit(corrections.logits[feedback.prompts]), labels)
    _write_csv(plots / "reliability.csv", reliability.bins)
    _write_csv(plots / "weights.csv", ratio_quantiles(feedback, corrections))
    print(
        f"density_ratio: {labels.sum():,} desired and {(~labels).sum():,} undesired rows; held-out AUC "
        f"{found['auc']['value']:.3f} [{found['auc']['low']:.3f}, {found['auc']['high']:.3f}]; undesired rows weighted "
        f"by the ratio are worth {found['effective_sample_share']['udm']:.0%} of their number, "
        f"{sum(found['clamped_share'].values()):.0%} of these weights are clamped; correction {params.correction}"
    )


def _table(prompt_ids: Sequence[str], corrections: Any) -> pa.Table:
    """Columns of `DENSITY_RATIOS`."""
    from scipy.special import expit

    columns = {
        "prompt_id": prompt_ids,
        "desirable_probability": expit(corrections.logits),
        "density_ratio": corrections.density_ratio,
        "desired_weight": corrections.desired_weight,
        "undesired_weight": corrections.undesired_weight,
        "logit_offset": corrections.logit_offset,
    }
    types = {field.name: field.type for field in DENSITY_RATIOS.fields}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _feedback(tokens: Path, prompt_embeddings: Path) -> "Feedback":
    """The labelled rows of the train split, by place of their prompts; and what was served."""
    from stages.udm.correction import Feedback

    rows = read_table(tokens, TOKENS, columns=["row_id", "prompt_id", "label", "split"])
    prompts = read_table(prompt_embeddings, PROMPT_EMBEDDINGS)
    embeddings = np.stack(prompts["embedding"].to_numpy())
    prompt_ids = prompts["prompt_id"].to_pylist()
    places = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
    try:
        row_places = np.array([places[prompt_id] for prompt_id in rows["prompt_id"].to_pylist()], dtype=np.int64)
    except KeyError as error:
        raise ValueError(f"{prompt_embeddings}: expected prompt {error} of {tokens}, found none; rerun both") from None
    is_train = np.array([split == "train" for split in rows["split"].to_pylist()], dtype=bool)
    row_ids = np.array(rows["row_id"].to_pylist(), dtype=object)
    labels = rows["label"].to_pylist()
    labelled = np.flatnonzero(is_train & np.array([label is not None for label in labels], dtype=bool))
    bare = np.setdiff1d(np.arange(len(prompt_ids)), row_places)
    return Feedback(
        prompt_ids=prompt_ids,
        embeddings=embeddings,
        row_ids=row_ids[labelled].tolist(),
        prompts=row_places[labelled],
        labels=np.array([labels[row] for row in labelled], dtype=bool),
        served=np.concatenate([row_places[is_train], bare]),
        served_ids=[*row_ids[is_train], *(prompt_ids[place] for place in bare)],
    )


def _write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Write NamedTuples of one kind, of which there is at least one."""
    lines = [",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row) for row in rows]
    write_text(path, "\n".join([",".join(rows[0]._fields), *lines]) + "\n")


if __name__ == "__main__":
    stage_main(run)
