"""Checkpoints of trainers that count in epochs: written whole or not at all, the last few kept."""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types

from stages.contracts.files import write_json

STATE_FILE = "epoch_state.json"
_PREFIX = "checkpoint_"


def save_epoch(accelerator: Accelerator, folder: Path, epoch: int, state: dict[str, Any], *, limit: int) -> Path:
    """Write `checkpoint_<epoch>` and remove the oldest beyond `limit`; all processes call it together.

    Args:
        accelerator: whose models, optimizers and random states are saved.
        folder: of the checkpoints.
        epoch: number of the epoch that has ended.
        state: what else is needed to go on, as finite JSON values.
        limit: checkpoints kept.
    """
    target = folder / f"{_PREFIX}{epoch}"
    beside = folder / f".{target.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(beside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(beside / STATE_FILE, state)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        for old in _numbered(folder)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def epoch_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the last one in the folder `path` or in its folder `checkpoints`.

    Raises:
        ValueError: there is none.
    """
    for folder in (path, path / "checkpoints"):
        if (folder / STATE_FILE).is_file():
            return folder
        found = _numbered(folder)
        if found:
            return found[-1]
    raise ValueError(f"resume_from: expected a checkpoint or a folder of checkpoints at {path}, found none")


def check_folder(folder: Path, *, last_epoch: int) -> None:
    """Raise if `folder` holds checkpoints of epochs that a run is yet to come to.

    Args:
        folder: of the checkpoints.
        last_epoch: the epoch that the run goes on from; -1 if it starts anew.

    Raises:
        ValueError: it does; they would be taken for this run's.
    """
    later = [path.name for path in _numbered(folder) if int(path.name.removeprefix(_PREFIX)) > last_epoch]
    if later:
        raise ValueError(
            f"{folder}: expected no checkpoint after epoch {last_epoch}, found {later[-1]} of an earlier run; set "
            "resume_from to it to go on, or choose another folder"
        )


def epoch_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_epoch` was given as `state`."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, by their epoch."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))
