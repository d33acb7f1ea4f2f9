"""Runs one stage: `dvc repro` of it alone, in a group of processes that ends with it."""

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from pipelines.graph import StageNode
from pipelines.locks import mend_notes
from pipelines.output import Progress, is_worth_logging, progress_of, read_lines
from pipelines.processes import ProcessGroups, end_groups

EXIT_STATUS = re.compile(r"exited with (-?\d+)")


class Outcome(StrEnum):
    """How a stage came to be as dvc.yaml asks, as the states of its task are called."""

    COMPUTED = "Completed"
    RESTORED = "Restored"
    UNCHANGED = "Cached"


class StageError(Exception):
    """A stage failed.

    Args:
        message: the stage's own words, and how it ended.
        status: exit status of its command; None if dvc failed before or after, or was killed.
        is_of_dvc: whether dvc gave up by itself, for reasons of its own.
    """

    def __init__(self, message: str, *, status: int | None, is_of_dvc: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_of_dvc = is_of_dvc


def run_stage(
    node: StageNode,
    groups: ProcessGroups,
    *,
    force: bool = False,
    on_line: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Bring one stage up to date; what it reads must be so already.

    Args:
        node: the stage.
        groups: where its processes are entered, so that they can be ended from outside.
        force: run it even if nothing changed.
        on_line: told each line that it prints.
        on_progress: told how far its progress bar is.

    Raises:
        StageError: it failed, or took longer than its policy allows.
        InterruptedError: the flow is stopping.
    """
    try:
        return _attempt(node, groups, force=force, on_line=on_line, on_progress=on_progress)
    except StageError as error:
        if not error.is_of_dvc:
            raise
        # A sibling that was killed while it wrote dvc's notes makes every other dvc stumble over them.
        on_line(f"once more, as dvc failed by itself: {error}")
        mend_notes()
        return _attempt(node, groups, force=force, on_line=on_line, on_progress=on_progress)


def _attempt(
    node: StageNode,
    groups: ProcessGroups,
    *,
    force: bool,
    on_line: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    # The repository's lock is waited for: a sibling that saves a large output holds it for longer than dvc's own
    # three seconds, and then this stage's finished work would be lost.
    words = ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), node.name]
    process = groups.start("dvc", words)
    seen = _Seen()
    try:
        with _time_limit(process, node.policy.timeout_s) as late:
            for line in read_lines(process.stdout):
                progress = progress_of(line)
                if progress:
                    on_progress(progress)
                elif is_worth_logging(line):
                    on_line(line)
                    seen.add(line)
            status = process.wait()
    finally:
        groups.forget(process)
    if groups.stopping.is_set():
        raise InterruptedError(groups.reason)
    if late.is_set():
        raise StageError(f"{node.name} took longer than {node.policy.timeout_s:g} s and was ended", status=None)
    if status:
        raise seen.error(node.name, status)
    return seen.outcome


@contextmanager
def _time_limit(process: subprocess.Popen[bytes], limit_s: float | None) -> Iterator[threading.Event]:
    """End the process's group after a time; gives the event that says so. Prefect's own limit can't end a thread."""
    late = threading.Event()

    def expire() -> None:
        late.set()
        end_groups([process])

    timer = threading.Timer(limit_s or 0, expire)
    timer.daemon = True
    if limit_s is not None:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()


class _Seen:
    """What matters of the lines printed."""

    def __init__(self) -> None:
        self.outcome = Outcome.UNCHANGED
        self._last_own = ""
        self._complaint = ""
        self._status: int | None = None

    def add(self, line: str) -> None:
        if line.startswith("Running stage '"):
            self.outcome = Outcome.COMPUTED
        elif "is cached - skipping run" in line:
            self.outcome = Outcome.RESTORED
        found = EXIT_STATUS.search(line)
        if found:
            self._status = int(found[1])
        elif self._status is None:
            self._last_own = line
        if line.startswith("ERROR: ") and not self._complaint:
            self._complaint = line.removeprefix("ERROR: ")

    def error(self, stage: str, dvc_status: int) -> StageError:
        if self._status is None:
            message = f"{stage}: dvc ended with {dvc_status}: {self._complaint or self._last_own}"
            return StageError(message, status=None, is_of_dvc=dvc_status > 0)
        return StageError(f"{stage} ended with {self._status}: {self._last_own}", status=self._status)
