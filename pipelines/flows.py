"""The Prefect flow: dvc.yaml's own graph, one task run per stage, with the same edges.

Prefect decides when and where, DVC decides whether: a stage that DVC would not run starts no process.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from pipelines.events import DATA_REJECTED, GATE_FAILED, tell_failure
from pipelines.graph import StageNode
from pipelines.locks import Holder, mend_notes, wait_for_leftovers, workspace_lock
from pipelines.overrides import apply_overrides
from pipelines.planning import Plan, make_plan
from pipelines.processes import ProcessGroups
from pipelines.run_artifacts import ProgressReporter, show_outputs, show_run
from pipelines.run_record import FAILED, SKIPPED, StageRecord, summary
from pipelines.stage_run import Outcome, StageError, run_stage
from stages.contracts.stage import EXIT_GATE, EXIT_REJECTED

DEFAULT_JOBS = 2
WATCH_EVERY_S = 3.0
RETRY_DELAY_S = 1.0
FAILURE_EVENTS = {EXIT_GATE: GATE_FAILED, EXIT_REJECTED: DATA_REJECTED}
"""By exit status of a stage, the event that tells of it. Running such a stage again would change nothing."""
REASONS = {
    Outcome.COMPUTED: "computed",
    Outcome.RESTORED: "the run cache has the result of the same inputs",
    Outcome.UNCHANGED: "code, parameters, inputs and outputs are as in dvc.lock",
}


@flow(name="plumbline", persist_result=False)
def pipeline(
    targets: list[str] | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
    jobs: int = DEFAULT_JOBS,
) -> State[Any]:
    """Bring stages up to date, and show what became of each.

    Args:
        targets: methods or stages, with all that they read from; none stands for all.
        overrides: values to set in params.yaml first, such as "training.bco.beta=0.3"; they stay set.
        force: run every stage, changed or not.
        jobs: stages that may run at a time.

    Returns:
        Completed if every stage is up to date, Failed with what failed, Cancelled if the run was cancelled.
    """
    log = get_run_logger()
    groups = ProcessGroups()
    doing = f"{flow_run.name} ({' '.join(targets or ['all stages'])})"
    with cancelled_with_its_run(groups):
        try:
            with workspace(doing, groups):
                if overrides:
                    apply_overrides(overrides)
                    log.info("params.yaml: %s", ", ".join(overrides))
                plan = make_plan(targets or ())
                log.info("%d stages, %d of them unchanged", len(plan.nodes), len(plan.unchanged))
                records = _GraphRun(plan, groups, force=force, jobs=jobs).execute()
        except InterruptedError as stopped:
            return Cancelled(message=str(stopped))
        except ValueError as error:
            return Failed(message=str(error))
        except BaseException as error:
            # Prefect waits for its threads before it lets a signal through; without their processes they end at once.
            groups.stop(f"the flow is stopping: {type(error).__name__}")
            raise
    if groups.stopping.is_set():
        return Cancelled(message=groups.reason)
    show_run(plan.nodes, records)
    log.info(summary(records))
    if any(record.state == FAILED for record in records.values()):
        return Failed(message=summary(records))
    return Completed(message=summary(records))


class _GraphRun:
    """One run of a plan: a task per stage, and what became of each."""

    def __init__(self, plan: Plan, groups: ProcessGroups, *, force: bool, jobs: int) -> None:
        self.plan = plan
        self.groups = groups
        self.force = force
        self.records: dict[str, StageRecord] = {}
        self.renewed: set[str] = set()
        """Stages whose outputs were written in this run."""
        self.culprits: dict[str, str] = {}
        """By stage that did not come to its end, the stage whose failure is to blame."""
        self.final_failures: set[str] = set()
        """Stages that would fail the same way if they ran again."""
        self.job_slots = threading.Semaphore(jobs)
        self.accelerator_slots = threading.Semaphore(1 if has_accelerator() else jobs)

    def execute(self) -> dict[str, StageRecord]:
        """Submit all tasks, wait for them, and give the records in the order of the plan."""
        futures: dict[str, PrefectFuture[Any]] = {}
        for node in self.plan.nodes:
            upstream = [_Settled(futures[other]) for other in node.upstream if other in futures]
            futures[node.name] = self._task(node).submit(wait_for=upstream, return_state=False)
        for future in futures.values():
            future.wait()
        return {node.name: self.records[node.name] for node in self.plan.nodes if node.name in self.records}

    def _task(self, node: StageNode) -> Task[[], State[Any]]:
        def may_differ_next_time(*_: object) -> bool:
            return node.name not in self.final_failures

        @task(
            name=node.name,
            task_run_name=node.name,
            retries=node.policy.retries,
            retry_delay_seconds=RETRY_DELAY_S,
            retry_condition_fn=may_differ_next_time,
            cache_policy=NO_CACHE,
            persist_result=False,
            tags=[node.policy.resources],
        )
        def body() -> State[Any]:
            return self._bring_up_to_date(node)

        return body

    def _bring_up_to_date(self, node: StageNode) -> State[Any]:
        culprit = next((self.culprits[other] for other in node.upstream if other in self.culprits), None)
        if culprit:
            self.culprits[node.name] = culprit
            return self._ended(node, SKIPPED, 0.0, f"{culprit} failed")
        is_settled = node.name in self.plan.unchanged and not self.renewed.intersection(node.upstream)
        if is_settled and not self.force:
            return self._ended(node, Outcome.UNCHANGED, 0.0, REASONS[Outcome.UNCHANGED])
        needs_accelerator = node.policy.resources == "accelerator"
        with self.job_slots, self.accelerator_slots if needs_accelerator else nullcontext():
            try:
                return self._run(node)
            except InterruptedError as stopped:
                return Cancelled(message=str(stopped))

    def _run(self, node: StageNode) -> State[Any]:
        start = time.monotonic()
        try:
            outcome = run_stage(
                node,
                self.groups,
                force=self.force,
                on_line=get_run_logger().info,
                on_progress=ProgressReporter(node.name),
            )
        except StageError as error:
            if error.status in FAILURE_EVENTS:
                self.final_failures.add(node.name)
                tell_failure(FAILURE_EVENTS[error.status], node.name, str(error))
            self.culprits[node.name] = node.name
            return self._ended(node, FAILED, time.monotonic() - start, str(error))
        self.culprits.pop(node.name, None)
        if outcome is not Outcome.UNCHANGED:
            self.renewed.add(node.name)
            show_outputs(node)
        return self._ended(node, outcome, time.monotonic() - start, REASONS[outcome])

    def _ended(self, node: StageNode, state: str, seconds: float, why: str) -> State[Any]:
        self.records[node.name] = StageRecord(str(state), seconds, why)
        if state == SKIPPED:
            return Cancelled(name=SKIPPED, message=why)
        if state == FAILED:
            return Failed(message=why)
        return Completed(name=str(state), message=why)


class _Settled(PrefectFuture[Any]):
    """A task that another waits for, however it ends: the edge, without Prefect's own judgement of the end."""

    def __init__(self, future: PrefectFuture[Any]) -> None:
        self._future = future

    @property
    def task_run_id(self) -> UUID:
        return self._future.task_run_id

    @property
    def state(self) -> State[Any]:
        return Completed(data=True)

    def wait(self, timeout: float | None = None) -> None:
        self._future.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        return self._future.result(timeout, raise_on_failure)

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        self._future.add_done_callback(fn)


@contextmanager
def workspace(doing: str, groups: ProcessGroups) -> Iterator[None]:
    """The workspace for this run alone, once what a killed run left is cleared away.

    Args:
        doing: what this run does, for those who wait.
        groups: gives up waiting when they are stopped.
    """
    log = get_run_logger()
    with workspace_lock(doing, run_id=str(flow_run.id), say=log.info, stopping=groups.stopping) as killed:
        if killed:
            close_killed(killed)
        wait_for_leftovers(groups.stopping)
        if mend_notes():
            log.warning("DVC's note of who reads and writes what was cut off; it is begun anew")
        yield


@contextmanager
def cancelled_with_its_run(groups: ProcessGroups) -> Iterator[None]:
    """End all processes once the run is cancelled in Prefect: nobody else does for a run that no `serve` started."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(flow_run.id, groups, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def close_killed(killed: Holder) -> None:
    """Show the run of a process that was killed as crashed; nobody else knows, and it would seem to run for ever."""
    log = get_run_logger()
    log.warning("the flow before this one was killed: %s", killed.sentence())
    try:
        with get_client(sync_client=True) as client:
            run_id = UUID(killed.run_id)
            state = client.read_flow_run(run_id).state
            if state is None or not state.is_final():
                client.set_flow_run_state(run_id, Crashed(message="its process was killed"), force=True)
    except (httpx.HTTPError, PrefectException, ValueError) as error:
        # It ran under another server, which is not asked.
        log.info("its run is not known to this server: %s", error)


def _watch(run_id: str, groups: ProcessGroups, over: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not over.wait(WATCH_EVERY_S):
            try:
                state = client.read_flow_run(UUID(run_id)).state
            except httpx.HTTPError:
                continue  # a server that restarts is no reason to end a training
            if state and (state.is_cancelling() or state.is_cancelled()):
                groups.stop("cancelled in Prefect")


def has_accelerator() -> bool:
    """Whether this machine has a device that stages must take turns on; found without loading torch."""
    return sys.platform == "darwin" or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
