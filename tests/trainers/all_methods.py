"""A training and evaluations of each method, in one process or as one of two that a test launches."""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.trainers.tiny import METHODS, WORDS, lines, method_trainer
from tests.trainers.tiny_reward import documented_rows, reward_trainer
from tests.trainers.tiny_sft import sft_trainer

_LOGGED = ("loss", "accuracy", "grad_norm", "rewards/chosen")
_WANTED = ("/", "eval_loss", "eval_delta", "eval_kl")


_OF_ALL: dict[str, Any] = {"rpo_alpha": 0.7, "use_weighting": True, "humanline": True, "log_epsilon_p": -0.05}
_TERMS = {
    "kto with terms": _OF_ALL,
    "dpo with terms": {**_OF_ALL, "ld_alpha": 0.3, "sync_ref_model": True, "ref_model_sync_steps": 2},
}
"""Methods with what can be added to them."""


def _rows(name: str, number: int, seed: int = 0) -> Dataset:
    rows = METHODS[name.split(maxsplit=1)[0]].encoded(number, seed=seed)
    columns = [column for column in rows.column_names if column.startswith("reference_")]
    return rows.remove_columns(columns) if name in _TERMS else rows


def trained(folder: Path, *, num_processes: int) -> dict[str, Any]:
    """Log, metrics, state and weights of each method, whose steps have eight rows in all."""
    found: dict[str, Any] = {}
    for method in (*METHODS, *_TERMS):
        trainer = method_trainer(
            method.split()[0],
            folder,
            rows=_rows(method, 16),
            eval_dataset=_rows(method, 7, seed=1),
            **_TERMS.get(method, {}),
            per_device_train_batch_size=8 // num_processes,
            per_device_eval_batch_size=4 // num_processes,
            ddp_backend="gloo" if num_processes > 1 else None,
        )
        trainer.train()
        # Of 5 rows in batches of two, the second of two processes has none of its own at last.
        evaluations = [trainer.evaluate(), trainer.evaluate(_rows(method, 5, seed=2))]
        kept = [{name: metrics[name] for name in metrics if any(w in name for w in _WANTED)} for metrics in evaluations]
        policy = trainer.accelerator.unwrap_model(trainer.model)
        found[method] = {
            "lines": lines(trainer) + kept,
            "rewards": trainer.method_state().get("rewards", {}),
            "weights": {name: weight.detach().clone() for name, weight in policy.named_parameters()},
        }
    return found


def trained_on_few(folder: Path, *, num_processes: int) -> dict[str, Any]:
    """Log and weights of trainers without a reference; of their 11 rows, the second step of eight has three."""
    texts = Dataset.from_list([{"text": " ".join(WORDS[row : row + 2 + row % 3])} for row in range(11)])
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8 // num_processes,
        "ddp_backend": "gloo" if num_processes > 1 else None,
    }
    trainers = {
        "reward": reward_trainer(folder, rows=documented_rows(11), **settings),
        "sft": sft_trainer(folder, rows=texts, dataset_text_field="text", **settings),
    }
    found: dict[str, Any] = {}
    for name, trainer in trainers.items():
        trainer.train()
        policy = trainer.accelerator.unwrap_model(trainer.model)
        found[name] = {
            "lines": [{key: line[key] for key in line if key in _LOGGED} for line in lines(trainer)],
            "weights": {key: weight.detach().clone() for key, weight in policy.named_parameters()},
        }
    return found


if __name__ == "__main__":
    output = Path(sys.argv[1])
    result = trained(output, num_processes=2) | trained_on_few(output, num_processes=2)
    if torch.distributed.get_rank() == 0:
        output.mkdir(exist_ok=True)
        torch.save(result, output / "found.pt")
