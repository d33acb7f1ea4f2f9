"""Stage `reward_evaluation`: whether a reward model agrees with people on held-out pairs.

How often it prefers what people chose, how well its scores tell how sure it may be, and whether it takes length for
quality. Each number comes with a bootstrap interval over prompts.
"""

from pydantic import Field

from stages.contracts.artifact import write_table
from stages.contracts.files import write_json
from stages.contracts.scored_pairs import SCORED_PAIRS
from stages.contracts.stage import Input, Output, Section, stage_main

CALIBRATION_COLUMNS = ["bin_low", "bin_high", "predicted", "observed", "low", "high", "rows"]
LENGTH_COLUMNS = ["difference_low", "difference_high", "accuracy", "low", "high", "margin", "pairs"]
SLICE_COLUMNS = ["slice", "metric", "value", "low", "high", "pairs"]


class RewardEvaluationParams(Section):
    """Section `reward_evaluation` of params.yaml."""

    slice_by: str | None = None
    """Column of the log by which results are also shown, such as a topic or a language; null shows none."""
    batch_size: int = Field(64, gt=0)
    """Rows in the model at once."""
    num_bins: int = Field(10, gt=1)
    """Bins of the curves of calibration and of accuracy by length."""
    num_resamples: int = Field(1000, gt=0)
    """Bootstrap resamples behind each interval."""
    seed: int = 0
    """Seed of the bootstrap."""


def run(
    *,
    base_model: Input,  # noqa: ARG001 - where the weights below an adapter stand
    model: Input,
    completions: Input,
    tokens: Input,
    rows: Input,
    scored_pairs: Output,
    metrics: Output,
    plots: Output,
    params: RewardEvaluationParams,
) -> None:
    """Score the held-out pairs and write what was found.

    Args:
        base_model: `base_model` artifact that the reward model began as; an adapter is laid on it.
        model: folder of the reward model.
        completions: `completions` artifact, for slices.
        tokens: `tokens` artifact.
        rows: `training_rows` artifact of the pairs, of which the held-out ones are read.
        scored_pairs: `scored_pairs` artifact to write.
        metrics: JSON to write.
        plots: folder to write: calibration.csv, by_length.csv and by_slice.csv.
        params: slices, bins and bootstrap.

    Raises:
        ContractError: an artifact is missing or damaged.
        ValueError: no pair is held out, a slice is unknown, or the reward model is broken.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch

    from stages.measures.plots import write_plot
    from stages.measures.preference_metrics import Resampling
    from stages.measures.reward_metrics import (
        ScoredPairs,
        accuracy_by_length,
        metrics_by_slice,
        pair_calibration,
        pair_summary,
    )
    from stages.models.devices import default_device, place
    from stages.models.held_out import held_out_prompts, prompt_slices
    from stages.models.pointer import precision_of
    from stages.models.scoring import load_reward_model, score_sequences
    from stages.rows.reading import read_rows

    held_out = read_rows(rows, tokens, kind="pairs").of_split("test")
    pairs, counts = held_out.columns(), held_out.counts["test"]
    if not len(pairs):
        raise ValueError(
            f"{rows}: expected held-out pairs, found none ({counts}); raise normalization.test_share, or add pairs"
        )
    prompt_ids = held_out.texts()["prompt_id"]
    slices = prompt_slices(held_out_prompts(completions), params.slice_by)
    device = default_device()
    reward_model = place(load_reward_model(model), device)
    sides = [pairs[f"{side}_input_ids"].to_pylist() for side in ("chosen", "rejected")]
    # As training computed, or the scores would differ from those that it learned by what bfloat16 rounds.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision_of(model).bf16):
        scores = score_sequences(reward_model, [*sides[0], *sides[1]], batch_size=params.batch_size).astype(np.float64)
    lengths = [
        np.array([len(ids) for ids in side]) - pairs[f"{name}_prompt_length"].to_numpy()
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    ]
    chosen, rejected = np.split(scores, 2)
    scored = ScoredPairs(np.array(prompt_ids.to_pylist(), dtype=str), chosen, rejected, *lengths)

    resampling = Resampling(params.num_resamples, params.seed)
    bins = pair_calibration(scored, resampling, num_bins=params.num_bins)
    found = pair_summary(scored, bins, resampling)
    found["counts"] |= {name: counts[name] for name in counts if name not in ("pairs", "other_split")}
    by_length = accuracy_by_length(scored, resampling, num_bins=params.num_bins)
    by_slice = metrics_by_slice(scored, slices, resampling) if slices else []

    table = pa.table({"row_id": pairs["row_id"], "prompt_id": prompt_ids})
    for name, values in (("chosen_score", chosen), ("rejected_score", rejected)):
        table = table.append_column(name, pa.array(values, pa.float32()))
    write_table(scored_pairs, table, SCORED_PAIRS)
    plots.mkdir()
    write_plot(plots / "calibration.csv", pd.DataFrame(bins, columns=CALIBRATION_COLUMNS))
    write_plot(plots / "by_length.csv", pd.DataFrame(by_length, columns=LENGTH_COLUMNS))
    write_plot(plots / "by_slice.csv", pd.DataFrame(by_slice, columns=SLICE_COLUMNS))
    write_json(metrics, found)
    accuracy = found["accuracy"]
    print(
        f"prefers what people chose in {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] of "
        f"{len(scored.chosen)} held-out pairs; calibration error {found['ece']:.3f}"
    )


if __name__ == "__main__":
    stage_main(run)
