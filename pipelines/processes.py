"""Processes that a flow starts, each at the head of a group that can be ended as a whole."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

DEFAULT_JOBS = 2
"""Stages, or experiments, that run at a time unless somebody says otherwise."""
INTERRUPT_GRACE_S = 5.0
"""Seconds that a stage has to tidy up after an interrupt; dvc also clears its locks then."""
TERMINATE_GRACE_S = 2.0


class ProcessGroups:
    """What one flow has running. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        """Set once everything is to end; nothing is started after that."""
        self.reason = ""
        """Why it was set."""
        self.notes_mended = 0
        """How often stale entries were removed from DVC's rwlock in this flow."""
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: int | IO[bytes] = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start `python -m MODULE ARGUMENTS` at the head of a group; it dies with this process.

        Args:
            module: module to run.
            arguments: its command line.
            environment: variables to add to this process's own.
            output: where it prints, errors as well.

        Raises:
            InterruptedError: everything is being stopped.
        """
        with self._lock:
            if self.stopping.is_set():
                raise InterruptedError(self.reason or "the flow is stopping")
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "pipelines.leash", str(os.getpid()), module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
            self._running[process.pid] = process
        return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """End what is left of a process's group, and reap it: dvc takes an unreaped one for alive."""
        end_groups([process])
        if process.stdout:
            process.stdout.close()
        with self._lock:
            self._running.pop(process.pid, None)

    def stop(self, reason: str) -> None:
        """End every group and let no other start; returns when all are gone."""
        with self._lock:
            self.reason = self.reason or reason
            self.stopping.set()
            running = list(self._running.values())
        end_groups(running)


def end_groups(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End the groups that these processes head: asked to interrupt, then to terminate, then killed."""
    groups = list(processes)
    for number, grace_s in [(signal.SIGINT, INTERRUPT_GRACE_S), (signal.SIGTERM, TERMINATE_GRACE_S)]:
        groups = [process for process in groups if _signal(process, number)]
        deadline = time.monotonic() + grace_s
        while groups and time.monotonic() < deadline:
            time.sleep(0.05)
            groups = [process for process in groups if _signal(process, 0)]
    for process in groups:
        _signal(process, signal.SIGKILL)
    for process in groups:
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a group; False if nobody is left in it. The head is reaped on the way."""
    process.poll()
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
