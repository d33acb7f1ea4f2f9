"""Runs one stage: `dvc repro` of it alone, in a group of processes that ends with it."""

import re
from collections.abc import Callable
from enum import StrEnum

from pipelines.dvc_process import STARTS_STAGE, run_dvc
from pipelines.graph import StageNode
from pipelines.locks import mend_notes
from pipelines.output import Progress
from pipelines.processes import ProcessGroups

EXIT_STATUS = re.compile(r"^ERROR: .*exited with (-?\d+)$")
DAMAGED_NOTE = "RWLock"
"""Stands in what dvc says of a note that was cut off."""
MESSAGE_LENGTH = 2000
"""Characters of a stage's own words that a message repeats, at most."""


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
    mended_before = groups.notes_mended
    try:
        return _attempt(node, groups, force=force, on_line=on_line, on_progress=on_progress)
    except StageError as error:
        # A sibling that was killed while it wrote DVC's rwlock makes every other dvc fail on it; and one that has
        # mended it removes the entries of the others, on which they fail at their end.
        if error.is_of_dvc and mend_notes():
            groups.notes_mended += 1
        if not error.is_of_dvc or (groups.notes_mended == mended_before and DAMAGED_NOTE not in str(error)):
            raise
        on_line(f"retrying, as DVC's rwlock had stale entries of a killed process: {error}")
        return _attempt(node, groups, force=force, on_line=on_line, on_progress=on_progress)


def _attempt(
    node: StageNode,
    groups: ProcessGroups,
    *,
    force: bool,
    on_line: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    seen = _Seen()

    def note(line: str) -> None:
        on_line(line)
        seen.add(line)

    words = ["repro", "--single-item", *(["--force"] if force else []), node.name]
    limit_s = node.policy.timeout_s
    try:
        status = run_dvc(words, groups, on_line=note, on_progress=on_progress, limit_s=limit_s)
    except TimeoutError:
        raise StageError(f"{node.name} took longer than {limit_s:g} s and was ended", status=None) from None
    if status:
        raise seen.error(node.name, status)
    return seen.outcome


class _Seen:
    """What matters of the lines printed."""

    def __init__(self) -> None:
        self.outcome = Outcome.UNCHANGED
        self._last_own = ""
        self._complaint = ""
        self._status: int | None = None

    def add(self, line: str) -> None:
        if line.startswith(STARTS_STAGE):
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
        """What to say of its end; a long line is cut, since a message is stored with each state of each run."""
        if self._status is None:
            message = f"{stage}: dvc ended with {dvc_status}: {_shortened(self._complaint or self._last_own)}"
            return StageError(message, status=None, is_of_dvc=dvc_status > 0)
        return StageError(f"{stage} ended with {self._status}: {_shortened(self._last_own)}", status=self._status)


def _shortened(line: str) -> str:
    if len(line) <= MESSAGE_LENGTH:
        return line
    return (
        f"{line[:MESSAGE_LENGTH]}... ({len(line) - MESSAGE_LENGTH:,} characters more; the log of the run has the line)"
    )
