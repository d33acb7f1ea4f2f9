"""Stage `evaluation`: what the policy does on held-out prompts, against the reference.

Two things are measured. On the held-out rows of the log: whether the implicit reward tells desired from undesired
completions. On completions that both models sample for held-out prompts: how far the policy went from the reference,
and, if a judge is named, whether its answers are better. Each number comes with a bootstrap interval over prompts,
overall and by slice.
"""

from typing import Any

from pydantic import Field

from stages.contracts.artifact import write_table
from stages.contracts.files import write_json
from stages.contracts.generations import GENERATIONS
from stages.contracts.stage import Input, Output, Scratch, Section, stage_main

CALIBRATION_COLUMNS = ["bin_low", "bin_high", "predicted", "observed", "low", "high", "rows"]
SLICE_COLUMNS = ["slice", "metric", "value", "low", "high", "prompts", "rows"]


class EvaluationParams(Section):
    """Section `evaluation` of params.yaml."""

    judge: str = "none"
    """Who says how good a sampled answer is: `none`; `demo`, the true reward of the demo's world; or
    `package.module:function`, a Python function of (prompt, completion). DVC doesn't watch the file of your own
    function: after an edit run `dvc repro --force evaluation@METHOD`."""
    slice_by: str | None = None
    """Column of the log by which results are also shown, such as a topic or a language; null shows none."""
    max_slices: int = Field(20, gt=0)
    """Slices shown; the smallest ones beyond that stand together."""
    num_prompts: int = Field(256, gt=0)
    """Held-out prompts that are sampled from, at most. A hash of the prompt chooses them."""
    num_samples: int = Field(4, gt=0)
    """Completions per prompt and model."""
    max_new_tokens: int = Field(128, gt=0)
    """Length of a sampled completion in tokens, at most."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling. The KL is that of the policy itself only at 1."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from; as for the temperature."""
    batch_size: int = Field(64, gt=0)
    """Rows in a model at once."""
    num_bins: int = Field(10, gt=1)
    """Bins of the calibration curve."""
    num_resamples: int = Field(1000, gt=0)
    """Bootstrap resamples behind each interval."""
    seed: int = 0
    """Seed of the prompts chosen, of the sampling and of the bootstrap."""


def run(
    *,
    base_model: Input,
    model: Input,
    completions: Input,
    tokens: Input,
    reference_logps: Input,
    generations: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: EvaluationParams,
) -> None:
    """Score and sample held-out prompts with both models and write what was found.

    Args:
        base_model: `base_model` artifact, the reference.
        model: folder of the trained policy.
        completions: `completions` artifact, for prompts, what the user wrote, and slices.
        tokens: `tokens` artifact, for the labelled rows.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        generations: `generations` artifact to write.
        metrics: JSON to write.
        plots: folder to write: calibration.csv and by_slice.csv.
        scratch: folder where what was sampled is kept until the judge came to its end.
        params: judge, slices, sampling and seed.

    Raises:
        ContractError: an artifact is missing, or `reference_logps` isn't of these `tokens`.
        ValueError: nothing is held out, a slice or judge is unknown, or the policy is broken, or the
            judge raises.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from stages.measures.plots import write_plot
    from stages.measures.preference_metrics import (
        Resampling,
        SampledPrompts,
        calibration_bins,
        compare_scores,
        metrics_by_slice,
        scored_rows,
        summary,
    )
    from stages.measures.results_table import results_table
    from stages.models.comparison import compare_models, kept_comparison
    from stages.models.generation import Sampling
    from stages.models.held_out import choose_prompts, held_out_prompts, labelled_rows, prompt_slices, read_reward
    from stages.models.judging import judge_all, named_judge
    from stages.text.messages import user_text

    judge = named_judge(params.judge)
    beta, reward_shift = read_reward(model)
    prompts = held_out_prompts(completions)
    slices = prompt_slices(prompts, params.slice_by)
    rows = labelled_rows(tokens, reference_logps)
    chosen = choose_prompts(prompts, num_prompts=params.num_prompts, seed=params.seed)

    sampling = Sampling(
        params.num_samples, params.max_new_tokens, params.temperature, params.top_p, params.seed, params.batch_size
    )
    compared = kept_comparison(
        scratch / "compared.json",
        lambda: compare_models(
            model,
            base_model,
            sequences=rows["input_ids"].to_pylist(),
            prompt_lengths=rows["prompt_length"].to_pylist(),
            spans=rows["spans"].to_pylist() if "spans" in rows.column_names else None,
            prompts=chosen["prompt"].to_pylist(),
            sampling=sampling,
        ),
    )
    values = dict(compared.values)
    scores: list[Any] = [[None] * len(chosen)] * 2
    if judge is not None:
        texts = [user_text(messages) for messages in chosen["messages"].to_pylist()]
        sides = (compared.policy_texts, compared.reference_texts)
        scores = [judge_all(judge, texts, side, name=params.judge) for side in sides]
        values.update(compare_scores(*scores))

    resampling = Resampling(params.num_resamples, params.seed)
    sampled = SampledPrompts(np.array(chosen["prompt_id"].to_pylist(), dtype=str), values)
    scored = scored_rows(rows, compared.policy_logps, beta=beta, reward_shift=reward_shift)
    bins = calibration_bins(scored, resampling, num_bins=params.num_bins)
    counts = {"prompts": len(prompts), "prompts_cut": compared.num_cut, "samples_per_prompt": params.num_samples}
    found = {
        **summary(scored, sampled, bins, resampling),
        "beta": beta,
        "reward_shift": reward_shift,
        "judge": params.judge,
    }
    found["counts"].update(counts)
    by_slice = metrics_by_slice(scored, sampled, slices, resampling, max_slices=params.max_slices) if slices else []

    plots.mkdir()
    write_plot(plots / "calibration.csv", pd.DataFrame(bins, columns=CALIBRATION_COLUMNS))
    write_plot(plots / "by_slice.csv", pd.DataFrame(by_slice, columns=SLICE_COLUMNS))
    write_json(metrics, found)
    table = pa.table(
        {
            "prompt_id": chosen["prompt_id"],
            "prompt": chosen["prompt"],
            "slice": pa.array([slices.get(prompt_id) for prompt_id in chosen["prompt_id"].to_pylist()], pa.string()),
            "policy": compared.policy_texts,
            "reference": compared.reference_texts,
            "policy_scores": pa.array(scores[0], pa.list_(pa.float32())),
            "reference_scores": pa.array(scores[1], pa.list_(pa.float32())),
        }
    )
    write_table(generations, table, GENERATIONS)
    print(results_table(found))


if __name__ == "__main__":
    stage_main(run)
