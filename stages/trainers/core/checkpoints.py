"""Checkpoints of all trainers: written whole or not at all, the last few kept, the last whole one found again."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.contracts.files import files_below, remove_folder, sync, write_json

ARGUMENTS_FILE = "training_args.bin"
SEAL_FILE = "digests.json"
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_WORDS_OF_TORCH = ("PytorchStreamWriter", "inline_container")


class Checkpoints(NamedTuple):
    """How a trainer's checkpoints are named, and by what one is known to be whole.

    A checkpoint is a folder of weights, optimizer and generators that accelerate or transformers wrote, with a JSON
    file of what else the trainer needs to go on.
    """

    trainer: str
    """Kind of the trainer, for messages."""
    prefix: str
    """Of a folder's name; the number of the step or epoch follows."""
    state_file: str
    """Name of the JSON file."""
    last_file: str | None = None
    """Another JSON file, written last, that a whole checkpoint has; None if there is none."""

    def save(self, accelerator: Accelerator, target: Path, state: dict[str, Any]) -> None:
        """Write what `accelerator` holds, and `state` beside it; all processes call it together.

        Args:
            accelerator: whose models, optimizers and random states are saved.
            target: folder to write. What stands there is replaced once the new one is whole.
            state: finite JSON values; those of the first process are written.
        """
        beside = target.with_name(f".{target.name}.tmp")
        if accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with written_to(target):
            accelerator.save_state(str(beside))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(beside / self.state_file, state)
                for file in files_below(beside):
                    sync(file)
                seal(beside)
        if accelerator.is_main_process:
            remove_folder(target)
            beside.rename(target)
            sync(target.parent)
        accelerator.wait_for_everyone()

    def keep_last(self, accelerator: Accelerator, newest: Path, *, limit: int | None) -> None:
        """Do `remove_oldest` in the first process; all processes call it together."""
        if accelerator.is_main_process:
            self.remove_oldest(newest, limit=limit)
        accelerator.wait_for_everyone()

    def remove_oldest(self, newest: Path, *, limit: int | None, best: Path | None = None) -> None:
        """Remove the oldest checkpoints beyond `limit`.

        Args:
            newest: the checkpoint that was just written, which is kept. One of a higher number beside it was damaged.
            limit: checkpoints to keep, at least 1; None or 0 keeps all.
            best: another one that is kept.
        """
        found = list(self.numbered(newest.parent).values())
        spare = [path for path in found if path not in {newest, best}]
        for old in spare[: max(0, len(found) - limit) if limit else 0]:
            remove_folder(old)

    def path(self, folder: Path, number: int) -> Path:
        """Where the checkpoint `number` stands in `folder`."""
        return folder / f"{self.prefix}{number}"

    def read(self, checkpoint: Path) -> dict[str, Any]:
        """The state that was written with a checkpoint.

        Raises:
            ValueError: the checkpoint has no such file, or a damaged one.
        """
        file = checkpoint / self.state_file
        try:
            state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            raise ValueError(
                f"{file}: expected the state of a {self.trainer} trainer, found none; resume from a checkpoint that "
                "one wrote"
            ) from None
        return state

    def numbered(self, folder: Path) -> dict[int, Path]:
        """The checkpoints in `folder`, whole or not, in the order of their numbers."""
        names = {path: path.name.removeprefix(self.prefix) for path in folder.glob(f"{self.prefix}*")}
        return dict(sorted((int(number), path) for path, number in names.items() if number.isdigit()))

    def last_whole(self, folder: Path) -> Path | None:
        """The newest checkpoint in `folder` that was written to its end; None if there is none."""
        return next((path for path in reversed(self.numbered(folder).values()) if self.is_whole(path)), None)

    def is_whole(self, checkpoint: Path) -> bool:
        """Whether a checkpoint was written to its end, and has the bytes that were written."""
        try:
            self.read(checkpoint)
            if self.last_file is not None:
                json.loads((checkpoint / self.last_file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return not damaged(checkpoint)


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Say of a full disk, or of another one that takes no more, what it means for the run.

    Args:
        folder: of the checkpoint or model that is written inside.

    Raises:
        OSError: something couldn't be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Torch says so in the words of its own file format.
        is_of_disk = error.errno in _OF_DISKS if isinstance(error, OSError) else True
        if isinstance(error, RuntimeError):
            is_of_disk = any(word in str(error) for word in _WORDS_OF_TORCH)
        if not is_of_disk:
            raise
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        raise OSError(
            f"{folder}: expected to write it whole, found {str(error).splitlines()[0]}; {free / 1e9:,.1f} GB are free "
            "there. Make room and run the same command again: it goes on from the last whole checkpoint"
        ) from error


def seal(checkpoint: Path) -> None:
    """Write down what the files of a checkpoint hash to, once all of them are there."""
    files = [file for file in files_below(checkpoint) if file != checkpoint / SEAL_FILE]
    digests = {file.relative_to(checkpoint).as_posix(): _digest(file) for file in files}
    write_json(checkpoint / SEAL_FILE, digests)


def damaged(checkpoint: Path) -> list[str]:
    """Names of files that aren't as they were when the checkpoint was sealed; none of one that never was."""
    file = checkpoint / SEAL_FILE
    if not file.is_file():
        return []
    try:
        digests: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return [SEAL_FILE]
    return [
        name
        for name, digest in digests.items()
        if not (checkpoint / name).is_file() or _digest(checkpoint / name) != digest
    ]


def _digest(file: Path) -> str:
    # Damage is no attack, and checkpoints are large: this hash reads as fast as a disk does.
    digest = xxhash.xxh3_128()
    with file.open("rb") as content:
        while piece := content.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


# Transformers writes this file last, but not in one piece.
LOOP_CHECKPOINTS = Checkpoints(
    "preference", f"{PREFIX_CHECKPOINT_DIR}-", "preference_state.json", last_file="trainer_state.json"
)
"""Those of trainers that follow the loop of transformers, which writes and counts them."""


def write_state(folder: Path, *, method: dict[str, Any], **sums: dict[str, list[list[float]]]) -> None:
    """Write beside a model what its trainer needs to go on, and take away the pickle of arguments.

    Transformers leaves its arguments there as a pickle, the hub's token in it; nothing reads them back.

    Args:
        folder: folder of a checkpoint or of a finished model.
        method: state of the method, as finite JSON values.
        sums: by name, metrics that are still gathered, of each process.
    """
    (folder / ARGUMENTS_FILE).unlink(missing_ok=True)
    write_json(folder / LOOP_CHECKPOINTS.state_file, {"method": method, **sums})
