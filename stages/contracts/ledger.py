"""Artifact `ledger`: what became of every record of the log, in its order.

A record stands once for each of its events, and once if it has none. Events that can be read are in `feedback_events`
under their number.
"""

from typing import Literal

import pyarrow as pa

from stages.contracts.artifact import schema

Fate = Literal["used", "merged", "superseded", "retracted", "refused", "joined", "left_out"]
"""`merged` says the same as a used event; `superseded` is a vote that its rater changed later, `retracted` one that was
taken back. A record that is `joined` is part of events that stand elsewhere, as a vote beside its answer; scores that
params don't ask for are `left_out`."""

LEDGER = schema(
    "ledger",
    1,
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),  # counted from 1 in the file
        pa.field("event", pa.int64()),  # its number in `feedback_events`; null where there is none
        pa.field("fate", pa.string(), nullable=False),  # one of `Fate`
        pa.field("reason", pa.string()),  # of refused and retracted ones, a name of stages.text.reasons
        pa.field("detail", pa.string()),  # what was found and what to do about it
        pa.field("row", pa.string()),  # the record as it stood, if it was refused or retracted
    ],
)
