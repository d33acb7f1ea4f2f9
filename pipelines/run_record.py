"""What became of each stage of a run."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

SKIPPED = "Skipped"
FAILED = "Failed"


class StageRecord(NamedTuple):
    """What became of one stage."""

    state: str
    """Name of the state that its task ended in: Completed, Restored, Cached, Failed or Skipped."""
    seconds: float
    """Wall time of its task, without waiting for a slot."""
    message: str
    """Why it is in that state."""


def summary(records: Mapping[str, StageRecord]) -> str:
    """How many stages ended in which state, and what the failed ones said."""
    counts = Counter(record.state for record in records.values())
    text = f"{len(records)} stages: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    failures = [record.message for record in records.values() if record.state == FAILED]
    return "; ".join([text, *failures])
