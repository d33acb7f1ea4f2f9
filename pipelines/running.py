"""Runs the flow from the command line, with a server or without."""

import sys
from collections.abc import Sequence

from pipelines.overrides import overridden
from pipelines.planning import resolve_targets, stage_names
from pipelines.servers import prepare_client

INTERRUPTED, TERMINATED = 130, 143


def run_flow(targets: Sequence[str], *, overrides: Sequence[str], force: bool, jobs: int) -> int:
    """Run the flow here and now and wait for it.

    Args:
        targets: methods or stages; none stands for all.
        overrides: values to set in params.yaml first.
        force: run every stage, changed or not.
        jobs: stages that may run at a time.

    Returns:
        Exit status: 0 if everything is up to date, 1 if a stage failed, 130 or 143 if it was stopped.

    Raises:
        ValueError: a target or a value is wrong; found before Prefect is loaded.
    """
    if jobs < 1:
        raise ValueError(f"--jobs: expected 1 or more, found {jobs}")
    overridden(overrides)
    if targets:
        resolve_targets(targets, stage_names())
    prepare_client()
    from prefect.exceptions import TerminationSignal

    from pipelines.flows import pipeline

    try:
        state = pipeline(list(targets), list(overrides), force, jobs, return_state=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except TerminationSignal:
        return TERMINATED
    if state.is_cancelled():
        return INTERRUPTED
    if not state.is_completed():
        print(state.message, file=sys.stderr)
    return 0 if state.is_completed() else 1
