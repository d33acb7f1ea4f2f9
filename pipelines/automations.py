"""What Prefect does by itself when something happens: send a message."""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, SendNotification
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from pipelines.events import DATA_REJECTED, GATE_FAILED


def register_automations(notify: str) -> list[str]:
    """Enter the automations, or bring them up to date; gives their names.

    Args:
        notify: the block that messages go through, as "slack-webhook/ops".

    Raises:
        ValueError: there is no such block.
    """
    with get_client(sync_client=True) as client:
        block = _block_id(client, notify)
        automations = [
            _message(GATE_FAILED, "a gate failed", block),
            _message(DATA_REJECTED, "too much feedback was rejected", block),
        ]
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
