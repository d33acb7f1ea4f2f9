"""Completions of policy and reference side by side, sampled while a trainer evaluates."""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

from stages.contracts.files import write_text
from stages.models.generation import Sampling, sample_ids

logger = logging.getLogger(__name__)
COLUMNS = ("prompt", "policy", "reference")


def write_samples(trainer: Any, rows: Any, name: str) -> None:
    """Sample answers to prompts of undesired rows, or of pairs, and log them or write them down.

    A table goes to Weights & Biases or Comet if the trainer reports there; else to
    `samples/<name>-<step>.jsonl` in its output folder.

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
    policy = _answers(trainer, trainer.accelerator.unwrap_model(trainer.model), prompts)
    reference: list[str] | list[None] = [None] * len(prompts)
    if trainer.reference is not None:
        with trainer.reference.active() as model:
            reference = _answers(trainer, trainer.accelerator.unwrap_model(model), prompts)
    texts = trainer.processing_class.batch_decode(prompts, skip_special_tokens=True)
    table: list[dict[str, str | None]] = [
        dict(zip(COLUMNS, cells, strict=True)) for cells in zip(texts, policy, reference, strict=True)
    ]
    _publish(trainer, table, name)


def _answers(trainer: Any, model: Any, prompts: list[list[int]]) -> list[str]:
    tokenizer = trainer.processing_class
    longest = max(len(prompt) for prompt in prompts)
    room = (trainer.args.max_length or longest + 256) - longest
    sampling = Sampling(num_samples=1, max_new_tokens=max(room, 16), seed=trainer.args.seed, batch_size=len(prompts))
    found = sample_ids(model, tokenizer, prompts, sampling=sampling)
    texts: list[str] = tokenizer.batch_decode([samples[0] for samples in found], skip_special_tokens=True)
    return texts


def _publish(trainer: Any, table: list[dict[str, str | None]], name: str) -> None:
    trackers = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    rows = [[row[column] for column in COLUMNS] for row in table]
    if "WandbCallback" in trackers:
        import wandb  # type: ignore[import-not-found] # only there if the tracker is

        wandb.log({f"{name}_samples": wandb.Table(columns=list(COLUMNS), data=rows)})
    elif "CometCallback" in trackers:
        import comet_ml  # type: ignore[import-not-found] # only there if the tracker is

        comet_ml.get_running_experiment().log_table(f"{name}_samples.csv", rows, headers=list(COLUMNS))
    else:
        file = Path(trainer.args.output_dir) / "samples" / f"{name}-{trainer.state.global_step}.jsonl"
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
