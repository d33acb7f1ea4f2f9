"""Stage `sft_training`: a model that answers as demonstrations do.

    python -m stages.sft_training --params training.sft --base-model models/base --tokens artifacts/tokens ...

What it learns from are demonstrations, or the completions that people liked in a feedback log, or both. The model
that it writes can stand wherever a base model can, so that other methods take it as their start and reference. It
goes on from its last checkpoint after a kill, to the same bytes.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, stage_main
from stages.text.layouts import Column
from stages.text.normal_form import PlainText
from stages.trainers.core.sections import OptimisationParams


class SFTTrainingParams(OptimisationParams):
    """Section `training.sft` of params.yaml."""

    learning_rate: float = Field(2e-5, gt=0)
    """Learning rate after warm-up."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """By our name of a column, the name that the log of demonstrations has for it: {prompt: question}."""
    plain_text: PlainText = "as_is"
    """Whether a prompt of plain text goes to the model as it is, or through the chat template as a user's turn."""
    test_share: float = Field(0.1, ge=0, lt=1)
    """Share of the demonstrations' prompts that are held out. Take that of `normalization`, so that what is held out
    there isn't learned here."""
    max_length: int | None = Field(1024, gt=0)
    """Tokens of a demonstration, at most; null cuts none."""
    completion_only_loss: bool = True
    """Whether completions alone are learned, and prompts not."""
    packing: Literal["none", "apart", "wrapped"] = "none"
    """Whether several demonstrations stand in one row: each whole and unseen by the others ("apart"), or one behind
    the other and cut where a row ends ("wrapped")."""
    seq_length: int = Field(1024, gt=0)
    """Tokens of a packed row."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """Strength of noise on the embeddings while training; null adds none."""
    merge_lora: bool = True
    """Whether a trained adapter becomes part of the weights, without which other methods can't start from them."""


_NOT_OF_THE_CONFIG = frozenset(
    {"columns", "plain_text", "test_share", "packing", "seq_length", "merge_lora", "max_length"}
)


def run(
    *,
    base_model: Input,
    demonstrations: Input | None = None,
    tokens: Input | None = None,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: SFTTrainingParams,
) -> None:
    """Train the base model to answer as demonstrations do.

    Args:
        base_model: `base_model` artifact, the start.
        demonstrations: file or folder of a log of demonstrations; None reads none.
        tokens: `tokens` artifact, of which the desired rows are learned; None reads none.
        model: folder to write: weights or adapter, tokenizer, model card, lineage, and the pointer by which it is a
            base model.
        metrics: JSON to write: what was trained on, the held-out loss before and after, and the first and last point
            of the curves.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: what to learn and how.

    Raises:
        ContractError: `tokens` is missing or damaged.
        ValueError: there is nothing to learn from, or a loss isn't finite.
    """
    from stages.models.loading import load_causal_lm
    from stages.models.pointer import read_pointer
    from stages.models.tokenizers import load_tokenizer
    from stages.rows.demonstrations import DemonstrationReader, read_demonstrations
    from stages.trainers.core.as_stage import adapter_config, config_arguments, train_on, write_curves, write_model
    from stages.trainers.core.tracking import tracker_callbacks, tracking_folder
    from stages.trainers.sft.trainer import SFTConfig, SFTTrainer

    read_pointer(base_model)  # needed when the model is written, which is hours later
    tokenizer = load_tokenizer(base_model)
    rows = read_demonstrations(
        log=demonstrations,
        tokens=tokens,
        reader=DemonstrationReader(
            tokenizer, params.columns, params.plain_text, test_share=params.test_share, max_length=params.max_length
        ),
    )
    print(f"training: {', '.join(f'{count:,} {name}' for name, count in rows.counts.items()).replace('_', ' ')}")
    arguments = config_arguments(params, without=_NOT_OF_THE_CONFIG)
    arguments["per_device_eval_batch_size"] = params.per_device_train_batch_size
    packing = params.packing != "none"
    trainer = SFTTrainer(
        load_causal_lm(base_model, dtype=params.dtype),
        SFTConfig(str(scratch), **arguments),
        train_dataset=rows.train,
        eval_dataset=rows.held_out if len(rows.held_out) else None,
        tokenizer=tokenizer,
        callbacks=tracker_callbacks(params.report_to, tracking_folder(scratch)),
        peft_config=adapter_config(params.lora, task_type="CAUSAL_LM"),
        packing=packing,
        max_seq_length=params.seq_length if packing else None,
        dataset_kwargs={"keep_documents_apart": params.packing == "apart"} if packing else None,
    )
    before = _held_out_loss(trainer)
    train_on(trainer, scratch)

    held_out = {"held_out": {"before": before, "after": _held_out_loss(trainer)}} if len(rows.held_out) else {}
    if params.lora is not None and params.merge_lora:
        trained: Any = trainer.model
        trainer.model = trained.merge_and_unload()
    # Read by `evaluation`, for which the log-ratio to the start is the reward.
    write_model(trainer, model, base_model, beta=1.0, reward_shift=0.0)
    if params.lora is None or params.merge_lora:
        _write_pointer(model, base_model)
    write_curves(trainer, plots, metrics, rows=rows.counts, **held_out)


def _held_out_loss(trainer: Any) -> float | None:
    """Mean loss of the held-out tokens, in nats; None if there are none."""
    return None if trainer.eval_dataset is None else float(trainer.evaluate()["eval_loss"])


def _write_pointer(model: Path, base_model: Path) -> None:
    """Make the folder of the model an artifact `base_model`."""
    from stages.models.pointer import fingerprint, read_pointer, tokenizer_fingerprint, write_pointer

    base = read_pointer(base_model)
    changes = {
        "source": "scratch",
        "path": None,
        "repository": None,
        "revision": None,
        "fingerprint": fingerprint(model, trust_remote_code=base.trust_remote_code),
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
    }
    write_pointer(model, base.model_copy(update=changes))


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
