"""Completions of policy and reference side by side, sampled while a trainer evaluates."""

import json
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    CometCallback,
    DVCLiveCallback,
    MLflowCallback,
    TensorBoardCallback,
    WandbCallback,
)

from stages.contracts.files import write_text
from stages.models.generation import Sampling, sample_ids

logger = logging.getLogger(__name__)
COLUMNS = ("prompt", "policy", "reference")


def write_samples(trainer: Any, rows: Any, name: str) -> None:
    """Sample answers to prompts of undesired rows, or of pairs, and log them or write them down.

    A table goes to each tracker that the trainer reports to and that can show one (TensorBoard, DVCLive, Weights &
    Biases, Comet, MLflow); without such a tracker, to `samples/<name>-<step>.jsonl` in the output folder.

    Args:
        trainer: a `PreferenceTrainer` that has just evaluated.
        rows: the encoded rows that it evaluated on.
        name: of the evaluation.
    """
    if not trainer.is_world_process_zero():
        return
    number = trainer.args.per_device_eval_batch_size
    labels = rows["label"][:] if "label" in rows.column_names else [False] * len(rows)
    chosen = list(islice((index for index, label in enumerate(labels) if not label), number))
    if not chosen:
        logger.warning("%s: expected undesired rows to answer anew, found none; nothing is sampled", name)
        return
    prefix = trainer.sequences[0]
    prompts = [row[f"{prefix}input_ids"][: row[f"{prefix}prompt_length"]] for row in (rows[index] for index in chosen)]
    policy = answers(trainer, trainer.model, prompts, least_room=16)
    reference: list[str] | list[None] = [None] * len(prompts)
    if trainer.reference is not None:
        with trainer.reference.active() as model:
            reference = answers(trainer, model, prompts, least_room=16)
    texts = trainer.processing_class.batch_decode(prompts, skip_special_tokens=True)
    table: list[dict[str, str | None]] = [
        dict(zip(COLUMNS, cells, strict=True)) for cells in zip(texts, policy, reference, strict=True)
    ]
    _publish(trainer, table, name)


def answers(trainer: Any, model: Any, prompts: list[list[int]], *, least_room: int) -> list[str]:
    """A sampled answer to each prompt, as text without special tokens.

    Args:
        trainer: a `PreferenceTrainer`, whose arguments say how long answers may be.
        model: its policy or its reference, as it is held.
        prompts: ids of each.
        least_room: tokens of an answer, at most, where a prompt leaves fewer of `max_length`.
    """
    tokenizer = trainer.processing_class
    longest = 0 if trainer.is_encoder_decoder else max(len(prompt) for prompt in prompts)
    room = max((trainer.args.max_length or longest + 256) - longest, least_room)
    room = min(room, trainer.args.max_completion_length or room)
    sampling = Sampling(num_samples=1, max_new_tokens=room, seed=trainer.args.seed, batch_size=len(prompts))
    # In the types of training: with weights of 4 bits and bf16 those of neighbouring layers differ.
    with trainer.accelerator.autocast():
        found = sample_ids(trainer.accelerator.unwrap_model(model), tokenizer, prompts, sampling=sampling)
    texts: list[str] = tokenizer.batch_decode([samples[0] for samples in found], skip_special_tokens=True)
    return texts


def _publish(trainer: Any, table: list[dict[str, str | None]], name: str) -> None:
    """Show the table in every tracker that can take one, or write it into the output folder if none did."""
    step = trainer.state.global_step
    is_shown = [
        show(callback, table, name, step)
        for callback in trainer.callback_handler.callbacks
        for kind, show in _TRACKERS.items()
        if isinstance(callback, kind)
    ]
    if not any(is_shown):
        _write(Path(trainer.args.output_dir), table, name, step)


def _write(folder: Path, table: list[dict[str, str | None]], name: str, step: int) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    write_text(folder / "samples" / f"{name}-{step}.jsonl", "".join(lines))


# Each gives whether it could show the table: a tracker begins its run with the training, or with the first log.


def _to_tensorboard(callback: Any, table: list[dict[str, str | None]], name: str, step: int) -> bool:
    if callback.tb_writer is None:
        return False
    cells = [[(row[column] or "").replace("|", "\\|").replace("\n", "<br>") for column in COLUMNS] for row in table]
    lines = [" | ".join(row) for row in (COLUMNS, ["---"] * len(COLUMNS), *cells)]
    callback.tb_writer.add_text(f"{name}_samples", "\n".join(f"| {line} |" for line in lines), step)
    return True


def _to_dvclive(callback: Any, table: list[dict[str, str | None]], name: str, step: int) -> bool:
    if callback.live is None:
        return False
    _write(Path(callback.live.dir), table, name, step)
    return True


def _to_wandb(_: Any, table: list[dict[str, str | None]], name: str, step: int) -> bool:  # noqa: ARG001 - it counts steps
    import wandb  # type: ignore[import-not-found] # only there if the tracker is

    if wandb.run is None:
        return False
    wandb.log({f"{name}_samples": wandb.Table(columns=list(COLUMNS), data=_cells(table))})
    return True


def _to_comet(_: Any, table: list[dict[str, str | None]], name: str, step: int) -> bool:
    import comet_ml  # type: ignore[import-not-found] # only there if the tracker is

    experiment = comet_ml.get_running_experiment()
    if experiment is None:
        return False
    experiment.log_table(f"{name}_samples-{step}.csv", _cells(table), headers=list(COLUMNS))
    return True


def _to_mlflow(_: Any, table: list[dict[str, str | None]], name: str, step: int) -> bool:
    import mlflow  # type: ignore[import-not-found] # only there if the tracker is

    if mlflow.active_run() is None:
        return False
    columns = {column: [row[column] for row in table] for column in COLUMNS}
    mlflow.log_table({**columns, "step": [step] * len(table)}, f"{name}_samples.json")
    return True


def _cells(table: list[dict[str, str | None]]) -> list[list[str | None]]:
    return [[row[column] for column in COLUMNS] for row in table]


_TRACKERS: dict[type, Callable[[Any, list[dict[str, str | None]], str, int], bool]] = {
    TensorBoardCallback: _to_tensorboard,
    DVCLiveCallback: _to_dvclive,
    WandbCallback: _to_wandb,
    CometCallback: _to_comet,
    MLflowCallback: _to_mlflow,
}
