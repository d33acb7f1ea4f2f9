"""Pairs and reward trainers small enough that a test trains on them in a moment."""

import inspect
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from stages.trainers import RewardConfig, RewardTrainer
from tests.trainers.tiny import tiny_llama, tiny_tokenizer


def tiny_classifier(*, seed: int = 0, dropout: float = 0.0, num_labels: int = 1) -> LlamaForSequenceClassification:
    """The layers of `tiny_llama` under a head that gives one score."""
    causal = tiny_llama(seed=seed, dropout=dropout)
    config = LlamaConfig(**{**causal.config.to_dict(), "num_labels": num_labels})
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config).eval()


def documented_rows(number: int = 8, *, margin: bool = False, seed: int = 0) -> Dataset:
    """Pairs with the documented columns; the longer a chosen row, the smaller its ids."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        chosen = torch.randint(3, 16, (4 + index % 5,), generator=generator).tolist()
        rejected = torch.randint(16, 32, (3 + index % 4,), generator=generator).tolist()
        row = {
            "input_ids_chosen": chosen,
            "attention_mask_chosen": [1] * len(chosen),
            "input_ids_rejected": rejected,
            "attention_mask_rejected": [1] * len(rejected),
        }
        rows.append({**row, "margin": 0.5 * index} if margin else row)
    return Dataset.from_list(rows)


def staged_rows(number: int = 12) -> Dataset:
    """Pairs with the columns that the stages make."""
    rows = documented_rows(number)
    columns = {"row_id": [f"pair{index}" for index in range(number)], "weight": [1.0] * number}
    for side in ("chosen", "rejected"):
        columns |= {f"{side}_input_ids": rows[f"input_ids_{side}"][:], f"{side}_prompt_length": [1] * number}
    return Dataset.from_dict(columns)


def reward_config(folder: Path, **arguments: Any) -> RewardConfig:
    """Three steps of four pairs."""
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return RewardConfig(str(folder), **{**defaults, **arguments})


def reward_trainer(folder: Path, *, model: Any = None, rows: Any = None, **arguments: Any) -> RewardTrainer:
    """A trainer of `tiny_classifier`; arguments of the trainer are told apart from those of its config."""
    own = {name: arguments.pop(name) for name in inspect.signature(RewardTrainer).parameters if name in arguments}
    if "model_init" not in own:
        own["model"] = tiny_classifier() if model is None else model
    own = {"args": reward_config(folder, **arguments), "tokenizer": tiny_tokenizer(), **own}
    return RewardTrainer(train_dataset=staged_rows() if rows is None else rows, **own)
