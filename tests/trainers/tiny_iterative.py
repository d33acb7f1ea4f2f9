"""Trainers of iterative SFT small enough that a test trains with them in a moment, and what they collate."""

import inspect
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from stages.trainers import IterativeSFTTrainer
from tests.trainers.tiny import tiny_llama, tiny_tokenizer


def iterative_arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Twelve steps of two rows."""
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**defaults, **changes})


def iterative_trainer(folder: Path, *, model: Any = None, **changes: Any) -> IterativeSFTTrainer:
    """A trainer of `tiny_llama`; arguments of the trainer are told apart from those of its config."""
    own = {name: changes.pop(name) for name in inspect.signature(IterativeSFTTrainer).parameters if name in changes}
    return IterativeSFTTrainer(model or tiny_llama(), iterative_arguments(folder, **changes), tiny_tokenizer(), **own)


def batches_of(trainer: IterativeSFTTrainer) -> list[dict[str, Any]]:
    """What the collator makes, from now on."""
    seen: list[dict[str, Any]] = []
    collate = trainer.data_collator
    # Still a collator of labels, or the trainer would leave the loss to the model.
    trainer.data_collator = type("Watched", (type(collate),), {"__call__": lambda _, rows: _keep(seen, collate(rows))})(
        0
    )
    return seen


def _keep(seen: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
    seen.append({name: tensor.tolist() for name, tensor in batch.items()})
    return batch
