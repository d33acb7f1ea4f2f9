"""What Prefect does by itself when something happens: send a message, or close runs whose process is gone."""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from pipelines.events import DATA_REJECTED, GATE_FAILED

HEARTBEAT_S = 30
"""Seconds between signs of life of a served run; Prefect takes no less."""


def register_automations(notify: str | None) -> list[str]:
    """Enter the automations, or bring them up to date; gives their names.

    Args:
        notify: the block that messages go through, as "slack-webhook/ops"; None sends none.

    Raises:
        ValueError: there is no such block.
    """
    with get_client(sync_client=True) as client:
        automations: list[AutomationCore] = [_zombies()]
        if notify:
            block = _block_id(client, notify)
            automations.append(_message(GATE_FAILED, "a gate failed", block))
            automations.append(_message(DATA_REJECTED, "too much feedback was rejected", block))
        for automation in automations:
            _enter(client, automation)
    return [automation.name for automation in automations]


def _enter(client: SyncPrefectClient, automation: AutomationCore) -> None:
    for stale in client.read_automations_by_name(automation.name):
        if stale.id:
            client.delete_automation(stale.id)
    client.create_automation(automation)


def _block_id(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise ValueError(
            f"--notify: expected a notification block such as slack-webhook/ops, and {slug} is none; "
            "make one under Blocks in Prefect's pages"
        ) from None
    return document.id


def _message(event: str, subject: str, block: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"plumbline: {subject}",
        description=f"Sends a message when {subject}.",
        trigger=EventTrigger(
            expect={event},
            match={"prefect.resource.id": "plumbline.stage.*"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"Plumbline: {subject}",
                body="{{ event.payload.message }}",
            )
        ],
    )


def _zombies() -> AutomationCore:
    """A served run whose machine went away would show as Running for ever."""
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name="plumbline: close runs without a sign of life",
        description="Marks a served run as crashed once its heartbeat stays away.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life from the run's process")],
    )
