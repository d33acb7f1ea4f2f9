"""What a checkpoint holds beyond weights and optimizer, and which checkpoints are whole."""

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.contracts.files import write_json

STATE_FILE = "preference_state.json"
ARGUMENTS_FILE = "training_args.bin"


def write_state(folder: Path, *, method: dict[str, Any], sums: dict[str, list[list[float]]]) -> None:
    """Write beside a model what its trainer needs to go on, and take away the pickle of arguments.

    Transformers leaves its arguments there as a pickle, the hub's token in it; nothing reads them back.

    Args:
        folder: folder of a checkpoint or of a finished model.
        method: state of the method, as finite JSON values.
        sums: metrics gathered since the last line of the log, of each process.
    """
    (folder / ARGUMENTS_FILE).unlink(missing_ok=True)
    write_json(folder / STATE_FILE, {"method": method, "sums": sums})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        ValueError: the checkpoint has no such file, or a damaged one.
    """
    file = checkpoint / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"{file}: expected the state of a preference trainer, found none; resume from a checkpoint that one wrote"
        ) from None
    return state


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end; None if there is none."""
    numbered = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit()
    }
    return next((numbered[step] for step in sorted(numbered, reverse=True) if _is_whole(numbered[step])), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_state(checkpoint)
        # Transformers writes this file last, but not in one piece.
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
