"""The state of a PPO trainer between two steps, on disk: whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.trainers.core.checkpoints import Checkpoints

STEP_CHECKPOINTS = Checkpoints("PPO", "step-", "ppo_state.json")


def save_trainer_state(trainer: Any, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write weights, optimizer, schedule, generators and what steers PPO.

    Args:
        trainer: a `PPOTrainer`; all processes call this together.
        folder: folder to write. What stands there is replaced.
        extra: finite JSON values to keep with it.
    """
    handle = trainer.accelerator.register_save_state_pre_hook(_without_twins)
    try:
        STEP_CHECKPOINTS.save(trainer.accelerator, folder, {**_plain_state(trainer), "extra": extra})
    finally:
        handle.remove()


def _without_twins(_models: list[Any], weights: list[dict[str, Tensor]], _folder: str) -> None:
    """Leave out tied weights but for the first name of each, which safetensors would warn of and leave out, too."""
    for state in weights:
        seen: set[tuple[int, int]] = set()
        for name in list(state):
            place = (state[name].data_ptr(), state[name].numel())
            if state[name].numel() and place in seen:
                del state[name]
            seen.add(place)


def load_trainer_state(trainer: Any, folder: Path) -> dict[str, Any]:
    """Put a trainer that was made alike into the state that was written; gives what was kept with it.

    Raises:
        ValueError: the folder holds no state.
    """
    state = STEP_CHECKPOINTS.read(folder)
    trainer.accelerator.load_state(str(folder))
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(state["schedule"])
    trainer.current_step = state["step"]
    trainer.kl_ctl.value = state["kl_coef"]
    trainer.running.restore(state["scores"])
    trainer.best_score.num_steps = state["best_score"]["num_steps"]
    trainer.best_score.highest = _number(state["best_score"]["highest"])
    name, keys, *rest = state["random"]
    trainer.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    order = _order(trainer)
    if order is not None and state.get("order") is not None:
        order.set_state(torch.frombuffer(bytearray.fromhex(state["order"]), dtype=torch.uint8))
    extra: dict[str, Any] = state["extra"]
    return extra


def _plain_state(trainer: Any) -> dict[str, Any]:
    name, keys, *rest = trainer.random.get_state()
    best = trainer.best_score
    return {
        "step": trainer.current_step,
        "kl_coef": trainer.kl_ctl.value,
        # Accelerate would keep it as a pickle, and run what a pickle says.
        "schedule": None if trainer.lr_scheduler is None else trainer.lr_scheduler.state_dict(),
        "scores": trainer.running.state(),
        "best_score": {"num_steps": best.num_steps, "highest": best.highest if np.isfinite(best.highest) else None},
        "random": [name, keys.tolist(), *rest],
        "order": None if (order := _order(trainer)) is None else bytes(order.get_state().tolist()).hex(),
    }


def _order(trainer: Any) -> torch.Generator | None:
    """What the next orders of the dataloader's rows are drawn from."""
    found: torch.Generator | None = getattr(trainer.dataloader, "generator", None)
    return found


def _number(value: float | None) -> float:
    return -np.inf if value is None else value
