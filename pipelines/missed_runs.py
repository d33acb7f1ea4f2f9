"""Nights on which nobody served, or a run was still busy: what they left is run once."""

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled

MISSED = "missed: the run after it, or the one that just began, does what this one would have"


def cancel_overdue(client: SyncPrefectClient, deployment_id: UUID, *, keep_newest: bool) -> int:
    """Cancel runs that the schedule of a deployment planned for before now and that nobody began.

    What people or events asked for stays.

    Args:
        client: of the server.
        deployment_id: whose runs.
        keep_newest: leave the last of them to run; a run that begins leaves none, since it does what all would have.

    Returns:
        How many were cancelled.
    """
    overdue = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    planned = [run for run in overdue if run.auto_scheduled]
    missed = planned[1:] if keep_newest else planned
    for run in missed:
        client.set_flow_run_state(run.id, Cancelled(message=MISSED), force=True)
    return len(missed)
