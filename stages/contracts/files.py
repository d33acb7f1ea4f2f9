"""Files written so that a kill or a full disk leaves the old one or the new one, never a half."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on success flush it to disk and rename it to `path`.

    An error inside removes the new file and leaves what stood at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` at once or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON with sorted keys, the same bytes for the same value.

    Raises:
        ValueError: a number is not finite, which JSON can't hold; up to five places are named.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError:
        places = list(_not_finite(value, ""))
        if not places:
            raise
        raise ValueError(
            f"{path}: expected finite numbers, which JSON holds alone, found others at {', '.join(places[:5])}"
        ) from None
    write_text(path, text + "\n")


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """Where numbers that aren't finite stand in a value, with each of them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} ({value})"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{place}/{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _not_finite(part, f"{place}[{number}]")


def kept(file: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `make` gives, from `file` if an earlier process has kept it there; else it is kept there for a later one.

    Args:
        file: JSON file beside the checkpoints.
        make: gives finite JSON values; lists and numbers alone come back as they were.
    """
    if not file.exists():
        write_json(file, make())
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; a kill leaves it whole, or the rest of it under a name that nobody reads."""
    gone = folder.with_name(f".{folder.name}.tmp-gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> list[Path]:
    """`path` itself if it is a file, else every file below it but Python's own caches, in a fixed order."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and file.parent.name != "__pycache__")
    return [path]


def tree_digest(path: Path) -> str:
    """SHA-256 over the relative names and bytes of a file or of all files below a folder."""
    digest = hashlib.sha256()
    for file in files_below(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        digest.update(f"{name}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def tree_stamp(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, size, modification time and inode of each file: cheap evidence that nothing was written since."""
    stamps = []
    for file in files_below(path):
        stat = file.stat()
        stamps.append((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(stamps)
