"""Sweeps over parameters: what all choices share is computed once, then each choice is an experiment of DVC's."""

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from pipelines.dvc_process import run_dvc
from pipelines.flows import cancelled_with_its_run, has_accelerator, pipeline, workspace
from pipelines.overrides import as_given_to_dvc
from pipelines.processes import ProcessGroups
from pipelines.run_artifacts import show_table
from pipelines.sweep_results import results_markdown

STARTS_EXPERIMENT = "Reproducing experiment '"
"""How the line begins in which dvc says that it has an experiment of its own to run."""


@flow(name="plumbline-sweep", persist_result=False)
def sweep_flow(
    choices: list[list[str]], shared: list[str], targets: list[str], metrics: list[str], jobs: int
) -> State[Any]:
    """Bring up to date what all choices share, then run each choice as an experiment beside the workspace.

    Args:
        choices: overrides of params.yaml, one list per experiment.
        shared: stages that no choice changes.
        targets: stages that each experiment ends with.
        metrics: metrics files to compare the experiments by.
        jobs: experiments at a time; one, where they would share an accelerator.

    Returns:
        Completed if every experiment ran, else Failed or Cancelled.
    """
    log = get_run_logger()
    if shared:
        # The reference is scored in this pass, once, and every experiment takes it from DVC's cache.
        state = pipeline(shared, None, False, jobs, return_state=True)
        if state.is_cancelled():
            return Cancelled(message=state.message)
        if not state.is_completed():
            return Failed(message=f"what the experiments share is not up to date: {state.message}")
    groups = ProcessGroups()
    with cancelled_with_its_run(groups):
        try:
            with workspace(f"{flow_run.name} (a sweep)", groups):
                names = _run_all(choices, targets, groups, jobs)
        except InterruptedError as stopped:
            return Cancelled(message=str(stopped))
    if groups.stopping.is_set():
        return Cancelled(message=groups.reason)
    found = {" ".join(choice): name for choice, name in zip(choices, names, strict=True) if name}
    table = results_markdown(found, metrics)
    show_table("sweep", table, "how the experiments compare")
    for line in table.splitlines():
        log.info(line)
    message = f"{len(found)} of {len(choices)} experiments ran; `dvc exp apply NAME` takes one over"
    return Completed(message=message) if len(found) == len(choices) else Failed(message=message)


def _run_all(
    choices: Sequence[Sequence[str]], targets: Sequence[str], groups: ProcessGroups, jobs: int
) -> list[str | None]:
    """Names of the experiments, in the order of the choices; None for one that failed."""
    slots = threading.Semaphore(1 if has_accelerator() else jobs)
    names = [f"{flow_run.name}-{number}" for number in range(1, len(choices) + 1)]
    starting = threading.Lock()

    def experiment_task(name: str, choice: Sequence[str]) -> Task[[], State[Any]]:
        @task(name=" ".join(choice), task_run_name=" ".join(choice), cache_policy=NO_CACHE, persist_result=False)
        def body() -> State[Any]:
            with slots:
                try:
                    status = _run_experiment(name, choice, targets, groups, starting)
                except InterruptedError as stopped:
                    return Cancelled(message=str(stopped))
            return Failed(message="the experiment failed; see its log") if status else Completed(message=name)

        return body

    futures = [
        experiment_task(name, choice).submit(return_state=False) for name, choice in zip(names, choices, strict=True)
    ]
    for future in futures:
        future.wait()
    # DVC keeps experiments that are about to start in one place, and whichever of its processes looks next takes one:
    # which process ran which is not to be known, but each has the name that it was given.
    known = _known_experiments()
    return [name if name in known else None for name in names]


def _known_experiments() -> set[str]:
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        return {name for experiments in repo.experiments.ls(all_commits=True).values() for name, _ in experiments}


def _run_experiment(
    name: str, choice: Sequence[str], targets: Sequence[str], groups: ProcessGroups, starting: threading.Lock
) -> int:
    """Run one in a folder of its own; gives the exit status of the `dvc` that was to run it.

    Args:
        name: what to call it.
        choice: overrides of params.yaml.
        targets: stages that it ends with.
        groups: where its process is entered.
        starting: held until it has begun, so that two don't take the same one.
    """
    log = get_run_logger()
    sets = [word for override in choice for word in ("--set-param", as_given_to_dvc(override))]
    # Rows that were computed in the workspace need not be computed again in the experiment's own folder.
    cache = os.environ.get("PLUMBLINE_CACHE", ".cache")
    begun = ExitStack()
    begun.enter_context(starting)

    def note(line: str) -> None:
        log.info(line)
        if line.startswith(STARTS_EXPERIMENT):
            begun.close()

    with begun:
        return run_dvc(
            ["exp", "run", "--temp", "--name", name, *sets, *targets],
            groups,
            on_line=note,
            on_progress=lambda _: None,
            environment={"PLUMBLINE_CACHE": str(Path(cache).resolve())},
        )
