"""Runs one command of `dvc`, in a group of processes that ends with it."""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from pipelines.output import Progress, is_worth_logging, progress_of, read_lines
from pipelines.processes import ProcessGroups, end_groups

STARTS_STAGE = "Running stage '"
"""How the line begins in which dvc says whose command it starts."""


def run_dvc(
    words: Sequence[str],
    groups: ProcessGroups,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    limit_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `dvc WORDS` to its end and give its exit status.

    Args:
        words: its command line.
        groups: where its processes are entered, so that they can be ended from outside.
        on_line: told each line that it prints.
        on_progress: told how far its progress bar is.
        limit_s: seconds after which it is ended, counted from when it starts a stage's command, since it may wait long
            for others before that; None waits for ever.
        environment: variables to add to this process's own.

    Raises:
        TimeoutError: it took longer than that.
        InterruptedError: the flow is stopping.
    """
    # The repository's lock is waited for: a sibling that saves a large output holds it for longer than dvc's own
    # three seconds, and then a stage's finished work would be lost.
    process = groups.start("dvc", ["--wait-for-lock", *words], environment=environment)
    limit = _TimeLimit(process, limit_s)
    try:
        for line in read_lines(process.stdout):
            if line.startswith(STARTS_STAGE):
                limit.start()
            progress = progress_of(line)
            if progress:
                on_progress(progress)
            elif is_worth_logging(line):
                on_line(line)
        status = process.wait()
    finally:
        limit.cancel()
        groups.forget(process)
    if groups.stopping.is_set():
        raise InterruptedError(groups.reason)
    if status and limit.is_over:
        raise TimeoutError
    return status


class _TimeLimit:
    """Ends a process's group some time after it was started. Prefect's own limit can't end a thread."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float | None) -> None:
        self.is_over = False
        self._process = process
        self._timer = None if limit_s is None else threading.Timer(limit_s, self._expire)
        self._is_started = False

    def start(self) -> None:
        """Begin to count, unless it was begun before."""
        if self._timer and not self._is_started:
            self._is_started = True
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """Count no further."""
        if self._timer:
            self._timer.cancel()

    def _expire(self) -> None:
        self.is_over = True
        end_groups([self._process])
