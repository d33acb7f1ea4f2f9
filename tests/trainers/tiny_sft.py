"""Texts and SFT trainers small enough that a test trains on them in a moment."""

import inspect
from pathlib import Path
from typing import Any

from datasets import Dataset

from stages.trainers import SFTConfig, SFTTrainer
from tests.trainers.tiny import WORDS, tiny_llama, tiny_tokenizer

TEXTS = [{"text": " ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(2 + i % 5))} for i in range(12)]


def sft_config(folder: Path, **arguments: Any) -> SFTConfig:
    """Three steps of four texts."""
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return SFTConfig(str(folder), **{**defaults, **arguments})


def sft_trainer(folder: Path, *, model: Any = None, rows: Any = TEXTS, **arguments: Any) -> SFTTrainer:
    """A trainer of `tiny_llama` on texts; arguments of the trainer are told apart from those of its config."""
    own = {name: arguments.pop(name) for name in inspect.signature(SFTTrainer).parameters if name in arguments}
    if rows is TEXTS and "formatting_func" not in own:
        own = {"dataset_text_field": "text", **own}
    return SFTTrainer(
        None if "model_init" in own else (tiny_llama() if model is None else model),
        own.pop("args", None) or sft_config(folder, **arguments),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        tokenizer=own.pop("tokenizer", None) or tiny_tokenizer(),
        **own,
    )
