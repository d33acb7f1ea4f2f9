"""Stage `reward_training`: a model that scores completions, from pairs of which people chose one.

    python -m stages.reward_training --params training.reward --base-model models/base --tokens artifacts/tokens ...

The reward model begins as the base model with a new head in place of its vocabulary. It learns from the pairs of the
log, and from those that votes on several answers to one prompt make. It goes on from its last checkpoint after a
kill, to the same bytes.
"""

from pydantic import Field

from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, stage_main
from stages.trainers.core.sections import OptimisationParams


class RewardTrainingParams(OptimisationParams):
    """Section `training.reward` of params.yaml."""

    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate after warm-up."""
    margin_column: str | None = None
    """Column of the log that says by how much a chosen completion is better, taken as margin of the loss; null asks
    for no margin."""
    margin_values: dict[str, float] | None = None
    """Margin that each text of that column stands for, such as {slight: 0.3, clear: 1.0}; null takes its numbers."""


def run(
    *,
    base_model: Input,
    tokens: Input,
    completions: Input | None = None,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: RewardTrainingParams,
) -> None:
    """Train a reward model on the pairs of the training split.

    Args:
        base_model: `base_model` artifact that the reward model begins as.
        tokens: `tokens` artifact.
        completions: `completions` artifact, for margins; None if there are none.
        model: folder to write: weights or adapter with the head, tokenizer, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last point of the curves.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: how to train.

    Raises:
        ContractError: an artifact is missing or damaged.
        ValueError: there are no pairs, a margin is missing, or a score isn't finite.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    from stages.models.pointer import read_pointer
    from stages.models.scoring import reward_model_of
    from stages.models.tokenizers import load_tokenizer
    from stages.rows.pairs import pair_margins, read_pairs
    from stages.trainers.core.as_stage import adapter_config, config_arguments, train_on, write_curves, write_model
    from stages.trainers.core.tracking import tracker_callbacks, tracking_folder
    from stages.trainers.reward.config import RewardConfig
    from stages.trainers.reward.trainer import RewardTrainer

    read_pointer(base_model)  # needed when the model is written, which is hours later
    pairs, counts = read_pairs(tokens, split="train")
    print(f"training: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    if params.margin_column is not None:
        if completions is None:
            raise ValueError(
                "margin_column: expected an argument completions, the artifact to read it from, found none"
            )
        margins = pair_margins(pairs, completions, params.margin_column, params.margin_values)
        pairs = pairs.append_column("margin", margins)
    trainer = RewardTrainer(
        reward_model_of(base_model, dtype=params.dtype, seed=params.seed),
        args=RewardConfig(str(scratch), **config_arguments(params, without={"margin_column", "margin_values"})),
        train_dataset=Dataset(InMemoryTable(pairs.drop_columns(["prompt_id"]))),
        tokenizer=load_tokenizer(base_model),
        callbacks=tracker_callbacks(params.report_to, tracking_folder(scratch)),
        peft_config=adapter_config(params.lora, task_type="SEQ_CLS"),
    )
    train_on(trainer, scratch)

    write_model(trainer, model, base_model)
    write_curves(trainer, plots, metrics, rows=counts)


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
