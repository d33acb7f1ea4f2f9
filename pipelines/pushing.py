"""Hands what a run wrote to DVC's remote, where other clones find it."""

from collections import deque
from collections.abc import Callable, Sequence

from pipelines.dvc_process import run_dvc
from pipelines.processes import ProcessGroups


class PushError(Exception):
    """Something didn't get to the remote."""


def push(stages: Sequence[str], groups: ProcessGroups, *, on_line: Callable[[str], None]) -> None:
    """Hand what the stages wrote, and DVC's run cache, to the default remote.

    Right after the run, since the run cache's entries go there whole, but of the files only those of the workspace.

    Args:
        stages: names of stages that are up to date; for none, nothing is done.
        groups: where its process is entered.
        on_line: told each line that it prints.

    Raises:
        PushError: something didn't get there.
        InterruptedError: the flow is stopping.
    """
    if not stages:
        return
    last: deque[str] = deque(maxlen=1)

    def note(line: str) -> None:
        on_line(line)
        last.append(line)

    status = run_dvc(["push", "--run-cache", *stages], groups, on_line=note, on_progress=lambda _: None)
    if status:
        raise PushError(
            f"the results stand here, but dvc push ended with {status}: {' '.join(last)}; "
            "the next run pushes them again"
        )
