"""The Prefect flow: dvc.yaml's own graph, one task run per stage, with the same edges.

Prefect decides when and where, DVC decides whether: a stage that DVC would not run starts no process.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from dvc.exceptions import DvcException
from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from pipelines.dvc_process import run_dvc
from pipelines.events import DATA_REJECTED, GATE_FAILED, tell_failure
from pipelines.graph import StageNode
from pipelines.locks import Holder, mend_notes, wait_for_leftovers, workspace_lock
from pipelines.missed_runs import cancel_overdue
from pipelines.overrides import apply_overrides
from pipelines.planning import Plan, make_plan
from pipelines.processes import DEFAULT_JOBS, ProcessGroups
from pipelines.publishing import PublishError, check_branch
from pipelines.publishing import publish as publish_files
from pipelines.pushing import PushError, push
from pipelines.run_artifacts import ProgressReporter, show_gate, show_outputs, show_run
from pipelines.run_record import FAILED, SKIPPED, StageRecord, summary
from pipelines.stage_run import Outcome, StageError, run_stage
from stages.contracts.stage import EXIT_GATE, EXIT_REJECTED, PARAMS_FILE

WATCH_EVERY_S = 3.0
RETRY_DELAY_S = 1.0
PUSH_RETRIES = 2
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
    publish: str | None = None,
) -> State[Any]:
    """Bring stages up to date, and show what became of each.

    Args:
        targets: methods or stages, with all that they read from; none stands for the methods in `run.methods` of
            params.yaml.
        overrides: values to set in params.yaml first, such as "training.bco.beta=0.3"; they stay set.
        force: run every stage, changed or not.
        jobs: stages that may run at a time.
        publish: branch, which is checked out, to commit and push dvc.lock on afterwards; None commits nothing.

    Returns:
        Completed if every stage is up to date, Failed with what failed, Cancelled if the run was cancelled.
    """
    if jobs < 1:
        return Failed(message=f"expected jobs of 1 or more, found {jobs}")
    groups = ProcessGroups()
    doing = f"{flow_run.name} ({' '.join(targets or ['the usual methods'])})"
    with cancelled_with_its_run(groups):
        try:
            if publish:
                check_branch(publish)
            with workspace(doing, groups):
                pass_over_missed()
                run = _brought_up_to_date(targets or (), overrides or (), groups, force=force, jobs=jobs)
                if publish and not groups.stopping.is_set():
                    run.publish(publish)
        except InterruptedError as stopped:
            return Cancelled(message=str(stopped))
        except (ValueError, DvcException) as error:
            return Failed(message=str(error))
    if groups.stopping.is_set():
        return Cancelled(message=groups.reason)
    records = run.in_order()
    show_run(run.plan.nodes, records)
    failures = list(filter(None, [run.push_failure, run.publish_failure]))
    came_of_it = "; ".join([summary(records), *failures])
    get_run_logger().info(came_of_it)
    if failures or any(record.state == FAILED for record in records.values()):
        return Failed(message=came_of_it)
    return Completed(message=came_of_it)


def _brought_up_to_date(
    targets: Sequence[str], overrides: Sequence[str], groups: ProcessGroups, *, force: bool, jobs: int
) -> "_GraphRun":
    """The run of the stages behind the targets, once all of them came to their ends."""
    log = get_run_logger()
    if overrides:
        apply_overrides(overrides)
        log.info("params.yaml: %s", ", ".join(overrides))
    plan = make_plan(targets)
    log.info("%d stages, %d of them unchanged", len(plan.nodes), len(plan.unchanged))
    for name, files in plan.edited.items():
        log.info("%s follows from an edit of %s", name, ", ".join(files))
    run = _GraphRun(plan, groups, force=force, jobs=jobs)
    run.execute()
    return run


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
        self.push_failure = ""
        """Why the results are not on the remote."""
        self.publish_failure = ""
        """Why dvc.lock is not on git's remote."""
        self.job_slots = threading.Semaphore(jobs)
        self.accelerator_slots = threading.Semaphore(1 if has_accelerator() else jobs)

    def execute(self) -> None:
        """Submit all tasks and wait for them."""
        self._note_new_data()
        futures: dict[str, PrefectFuture[Any]] = {}
        for node in self.plan.nodes:
            upstream = [_Settled(futures[other]) for other in node.upstream if other in futures]
            futures[node.name] = self._task(node).submit(wait_for=upstream, return_state=False)
        for future in futures.values():
            future.wait()
        if self.plan.remote:
            self._push().submit(wait_for=list(map(_Settled, futures.values())), return_state=False).wait()

    def publish(self, branch: str) -> None:
        """Commit and push what the run recorded, in a task of its own."""

        @task(name="git push", task_run_name="git push", cache_policy=NO_CACHE, persist_result=False)
        def body() -> State[Any]:
            if self.push_failure:
                self.publish_failure = "dvc.lock is not published, since others would look for results in vain"
                return Failed(message=self.publish_failure)
            paths = ["dvc.lock", str(PARAMS_FILE), *self.plan.sources]
            message = f"Record what {flow_run.name} computed\n\n{summary(self.in_order())}"
            try:
                return Completed(message=publish_files(branch, paths, message))
            except PublishError as error:
                self.publish_failure = str(error)
                return Failed(message=self.publish_failure)

        body.submit(return_state=False).wait()

    def _note_new_data(self) -> None:
        """Have DVC keep the data as it is now, so that what is pushed is what was read."""
        for source in (name for name, is_new in self.plan.sources.items() if is_new):
            status = run_dvc(
                ["commit", "--force", source], self.groups, on_line=get_run_logger().info, on_progress=lambda _: None
            )
            if status:
                raise ValueError(f"`dvc commit --force {source}` ended with {status}; its output stands in the log")

    def in_order(self) -> dict[str, StageRecord]:
        """What became of each stage, in the order of the plan."""
        lost = StageRecord(FAILED, 0.0, "its task ended without a word")
        return {node.name: self.records.get(node.name, lost) for node in self.plan.nodes}

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
            try:
                return self._bring_up_to_date(node)
            except Exception as error:
                # Whatever it is, nothing that reads from this stage may run.
                self.culprits[node.name] = node.name
                self._ended(node, FAILED, 0.0, f"{node.name}: {type(error).__name__}: {error}")
                raise

        return body

    def _push(self) -> Task[[], State[Any]]:
        @task(
            name="dvc push",
            task_run_name="dvc push",
            retries=PUSH_RETRIES,
            retry_delay_seconds=RETRY_DELAY_S,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        def body() -> State[Any]:
            stages = [name for name, record in self.records.items() if record.state not in {FAILED, SKIPPED}]
            self.push_failure = "dvc push did not come to its end"
            try:
                push([*stages, *self.plan.sources], self.groups, on_line=get_run_logger().info)
            except InterruptedError as stopped:
                return Cancelled(message=str(stopped))
            except PushError as error:
                self.push_failure = str(error)
                return Failed(message=self.push_failure)
            self.push_failure = ""
            return Completed(message=f"{self.plan.remote} has what {len(stages)} stages wrote, and the run cache")

        return body

    def _bring_up_to_date(self, node: StageNode) -> State[Any]:
        culprit = next((self.culprits[other] for other in node.upstream if other in self.culprits), None)
        if culprit:
            self.culprits[node.name] = culprit
            return self._ended(node, SKIPPED, 0.0, f"{culprit} failed")
        is_settled = node.name in self.plan.unchanged and not self.renewed.intersection(node.feeding)
        if is_settled and not self.force:
            return self._ended(node, Outcome.UNCHANGED, 0.0, REASONS[Outcome.UNCHANGED])
        needs_accelerator = node.policy.resources == "accelerator"
        # In this order, so that a stage that waits for the accelerator keeps no other from running.
        with self.accelerator_slots if needs_accelerator else nullcontext(), self.job_slots:
            try:
                return self._run(node)
            except InterruptedError as stopped:
                return Cancelled(message=str(stopped))

    def _run(self, node: StageNode) -> State[Any]:
        start = time.monotonic()
        if node.is_gate:
            show_gate(node)
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
            log.warning("removed stale entries of a killed process from DVC's rwlock (.dvc/tmp/rwlock)")
        try:
            yield
        except BaseException as error:
            # Prefect waits for its threads before it lets a signal through; without their processes they end at once.
            # And nobody else may have the workspace before they did.
            groups.stop(f"the flow is stopping: {type(error).__name__}")
            raise


@contextmanager
def cancelled_with_its_run(groups: ProcessGroups) -> Iterator[None]:
    """End all processes once the run is cancelled in Prefect: nobody else does for a run that no `serve` started."""
    over = threading.Event()
    runs = {run_id for run_id in (flow_run.id, flow_run.root_flow_run_id) if run_id}
    watcher = threading.Thread(target=_watch, args=(runs, groups, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def pass_over_missed() -> None:
    """Cancel what the schedule planned for before now: this run does what those would have."""
    try:
        with get_client(sync_client=True) as client:
            deployment_id = client.read_flow_run(UUID(str(flow_run.id))).deployment_id
            missed = cancel_overdue(client, deployment_id, keep_newest=False) if deployment_id else 0
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().info("missed runs are not looked for: %s", error)
        return
    if missed:
        get_run_logger().info("%d runs that were missed are passed over", missed)


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


def _watch(runs: set[str], groups: ProcessGroups, over: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not over.wait(WATCH_EVERY_S):
            try:
                states = [client.read_flow_run(UUID(run_id)).state for run_id in runs]
            except ObjectNotFound:
                # Nobody sees what becomes of it, and its slot may be given to another run.
                groups.stop("its run was deleted in Prefect")
                return
            except (httpx.HTTPError, PrefectException):
                continue  # a server that restarts is no reason to end a training
            if any(state and (state.is_cancelling() or state.is_cancelled()) for state in states):
                groups.stop("cancelled in Prefect")


def has_accelerator() -> bool:
    """Whether this machine has a device that stages must take turns on; found without loading torch."""
    return sys.platform == "darwin" or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
