"""What happened, told to Prefect, so that its automations can act: send a message, or start the nightly flow."""

from prefect.events import emit_event

GATE_FAILED = "plumbline.gate.failed"
DATA_REJECTED = "plumbline.data.rejected"
DATA_UPDATED = "plumbline.data.updated"
FEEDBACK = "plumbline.feedback"
"""Resource that `DATA_UPDATED` is about."""


def tell_failure(event: str, stage: str, message: str) -> None:
    """Say that a gate wasn't met or that too many rows were rejected.

    Args:
        event: GATE_FAILED or DATA_REJECTED.
        stage: name of the stage.
        message: the stage's own words.
    """
    resource = {"prefect.resource.id": f"plumbline.stage.{stage}", "prefect.resource.name": stage}
    emit_event(event=event, resource=resource, payload={"message": message})


def tell_data_update(source: str) -> None:
    """Say that the feedback log has new rows.

    Args:
        source: who says so, or what is new.
    """
    resource = {"prefect.resource.id": FEEDBACK, "prefect.resource.name": "feedback log"}
    emit_event(event=DATA_UPDATED, resource=resource, payload={"source": source})
