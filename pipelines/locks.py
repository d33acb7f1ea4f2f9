"""One flow at a time in a workspace: two would block each other's stages, or edit params.yaml under them."""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import IO, NamedTuple

from stages.contracts.files import write_text

LOCK_FILE = Path(".dvc/tmp/flow.lock")
DVC_NOTES = Path(".dvc/tmp/rwlock")
"""Where DVC notes which process reads and writes which path; it refuses to wait for any of them."""
POLL_S = 0.5
LEFTOVER_GRACE_S = 5.0
REMIND_EVERY_S = 60.0


class Holder(NamedTuple):
    """Who has the workspace."""

    pid: int
    since: str
    doing: str
    run_id: str = ""
    """Id of its flow run."""

    def sentence(self) -> str:
        """Who it is, since when, and what it does."""
        return f"process {self.pid}, which since {self.since} runs {self.doing}"


@contextmanager
def workspace_lock(
    doing: str,
    *,
    run_id: str = "",
    say: Callable[[str], None],
    stopping: Event | None = None,
    path: Path = LOCK_FILE,
) -> Iterator[Holder | None]:
    """Have the workspace alone; wait for it, and say for what.

    The kernel gives the lock back when its holder dies, however it dies. Gives the last holder if it was killed.

    Args:
        doing: what the holder does, for those who wait.
        run_id: id of its flow run.
        say: told what is waited for, at once and then every minute.
        stopping: gives up waiting when it is set.
        path: file to lock.

    Raises:
        ValueError: there is no DVC repository here.
        InterruptedError: the wait was given up.
    """
    if not path.parent.parent.is_dir():
        raise ValueError(f"expected a DVC repository in {Path.cwd()}, found none; run from the project's root")
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _wait_for(file, say, stopping or Event(), path)
        killed = _read(file)
        try:
            holder = Holder(os.getpid(), datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"), doing, run_id)
            _write(file, json.dumps(holder._asdict()))
            yield killed
        finally:
            # Whoever looks sees an empty file; closing it gives the lock back.
            _write(file, "")


def mend_notes(path: Path = DVC_NOTES) -> bool:
    """Remove stale entries of killed processes from DVC's rwlock, which says who reads and writes what.

    Those are a file that was cut off, over which every `dvc` would fail, and processes that are dead but that nobody
    reaped, as in a container whose first process reaps none: DVC takes them for alive.

    Args:
        path: the file.

    Returns:
        Whether there was anything.
    """
    from dvc.lock import make_lock

    if not path.is_file():
        return False
    # Its guard: without it, a file that is just being written looks the same.
    with make_lock(str(path.with_name(f"{path.name}.lock")), tmp_dir=str(path.parent), wait=True):
        try:
            noted = {"write": {}, "read": {}, **json.loads(path.read_text(encoding="utf-8"))}
        except FileNotFoundError:
            return False
        except ValueError:
            path.unlink()
            return True
        living = {
            "write": {each: one for each, one in noted["write"].items() if _is_alive(one["pid"])},
            "read": {each: [one for one in all_ if _is_alive(one["pid"])] for each, all_ in noted["read"].items()},
        }
        if living == noted:
            return False
        write_text(path, json.dumps(living))
        return True


def _is_alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for_leftovers(stopping: Event, path: Path = DVC_NOTES) -> None:
    """Give the processes of a flow that was killed the moment that they need to be gone.

    Those of somebody else's `dvc`, which may run for hours, are not waited for any longer.

    Args:
        stopping: gives up waiting when it is set.
        path: DVC's rwlock.
    """
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while _noted_processes(path) and time.monotonic() < deadline and not stopping.wait(0.1):
        pass


def _noted_processes(path: Path) -> list[int]:
    """Processes in DVC's rwlock that are alive."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [pid for pid in map(int, re.findall(r'"pid": *(\d+)', text)) if _is_alive(pid)]


def lock_holder(path: Path = LOCK_FILE) -> Holder | None:
    """Who has the workspace now, or None."""
    try:
        with path.open("a+", encoding="utf-8") as file:
            return None if _try(file) else _read(file)
    except FileNotFoundError:
        return None


def _wait_for(file: IO[str], say: Callable[[str], None], stopping: Event, path: Path) -> None:
    said_at = -float("inf")
    while not _try(file):
        if stopping.is_set():
            raise InterruptedError(f"stopped while waiting for {path}")
        if time.monotonic() - said_at >= REMIND_EVERY_S:
            holder = _read(file)
            say(f"waiting for {holder.sentence() if holder else f'the holder of {path}'}")
            said_at = time.monotonic()
        stopping.wait(POLL_S)


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: IO[str]) -> Holder | None:
    file.seek(0)
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        # Between taking the lock and writing who took it.
        return None


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
