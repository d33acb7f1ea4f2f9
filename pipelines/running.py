"""Runs the flow from the command line, with a server or without."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.graph import read_graph
from pipelines.overrides import overridden
from pipelines.planning import resolve_targets
from pipelines.publishing import check_branch
from pipelines.servers import have_server
from pipelines.sweep_plan import plan_sweep

INTERRUPTED = 130


def run_flow(targets: Sequence[str], *, overrides: Sequence[str], force: bool, jobs: int, publish: str | None) -> int:
    """Run the flow here and now and wait for it.

    Args:
        targets: methods or stages; none stands for those in `run.methods`.
        overrides: values to set in params.yaml first.
        force: run every stage, changed or not.
        jobs: stages that may run at a time.
        publish: branch to commit and push dvc.lock on afterwards; None commits nothing.

    Returns:
        Exit status: 0 if everything is up to date, 1 if a stage failed, 130 if it was stopped.

    Raises:
        ValueError: a target or a value is wrong; found before Prefect is loaded.
    """
    overridden(overrides)
    if publish:
        check_branch(publish)
    if targets:
        resolve_targets(targets, read_graph())
    have_server()
    from pipelines.flows import pipeline

    return _exit_status(lambda: pipeline(list(targets), list(overrides), force, jobs, publish, return_state=True))


def run_sweep(targets: Sequence[str], *, overrides: Sequence[str], jobs: int) -> int:
    """Run an experiment for each combination of the values listed, and wait for all.

    Args:
        targets: methods or stages; none stands for all that the values change.
        overrides: such as "training.bco.beta=0.05,0.1,0.3".
        jobs: experiments at a time.

    Returns:
        Exit status, as for `run_flow`.

    Raises:
        ValueError: a target or a value is wrong.
    """
    plan = plan_sweep(overrides, targets)
    print(f"{len(plan.choices)} experiments of {', '.join(plan.targets)}; {len(plan.shared)} stages are shared")
    have_server()
    from pipelines.sweeps import sweep_flow

    return _exit_status(lambda: sweep_flow(*plan, jobs, return_state=True))


def _exit_status(run: Callable[[], Any]) -> int:
    try:
        state = run()
    except KeyboardInterrupt:
        return INTERRUPTED
    if state.is_cancelled():
        return INTERRUPTED
    if not state.is_completed():
        print(state.message, file=sys.stderr)
    return 0 if state.is_completed() else 1
