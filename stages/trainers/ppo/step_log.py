"""Statistics of PPO for trackers: numbers, distributions, and the texts beside their rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from accelerate.utils import gather_object  # type: ignore[import-untyped] # the same
from torch import Tensor

TABLE = "game_log"
"""Name of the table of texts, as the documentation has it."""


def reward_statistics(rewards: Any, accelerator: Accelerator) -> dict[str, Any]:
    """Mean, spread and list of the rewards of all processes.

    Args:
        rewards: numbers or tensors of one entry, or one tensor.
        accelerator: knows the other processes.
    """
    given = rewards if isinstance(rewards, Tensor) else torch.stack([torch.as_tensor(reward) for reward in rewards])
    found = accelerator.gather(given.flatten().float().to(accelerator.device))
    return {
        "env/reward_mean": found.mean().item(),
        "env/reward_std": found.std().item() if len(found) > 1 else 0.0,
        "env/reward_dist": found.cpu().numpy(),
    }


def text_rows(batch: Mapping[str, Any], rewards: Sequence[Any], columns: Sequence[str]) -> list[list[Any]]:
    """One row per response of all processes: the columns that the batch has, and the reward.

    Raises:
        ValueError: the batch lacks a column.
    """
    missing = [column for column in columns if column not in batch]
    if missing:
        raise ValueError(
            f"expected columns {', '.join(columns)} in the batch, found no {missing[0]}; name others in columns_to_log"
        )
    rows = [[*texts, float(reward)] for *texts, reward in zip(*(batch[c] for c in columns), rewards, strict=True)]
    return list(gather_object(rows))


def log_to_trackers(
    accelerator: Accelerator,
    stats: Mapping[str, Any],
    rows: Sequence[Sequence[Any]],
    columns: Sequence[str],
    *,
    step: int,
) -> None:
    """Send a step to each tracker: numbers to all, distributions and texts to those that can show them.

    Args:
        accelerator: holds the trackers.
        stats: numbers, and arrays that are shown as distributions.
        rows: texts and rewards.
        columns: names of the texts.
        step: number of the step.
    """
    numbers = {name: float(value) for name, value in stats.items() if np.ndim(value) == 0}
    arrays = {name: value for name, value in stats.items() if np.ndim(value) > 0}
    header = [*columns, "reward"]
    for tracker in accelerator.trackers:
        tracker.log(numbers, step=step)
        if tracker.name == "tensorboard":
            for name, values in arrays.items():
                tracker.tracker.add_histogram(name, np.asarray(values), step)
            if rows:
                tracker.tracker.add_text(TABLE, _markdown(header, rows), step)
        elif hasattr(tracker, "log_table") and rows:
            tracker.log_table(TABLE, columns=header, data=[list(row) for row in rows], step=step)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
