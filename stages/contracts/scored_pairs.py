"""Artifact `scored_pairs`: held-out pairs with what a reward model gives both completions."""

import pyarrow as pa

from stages.contracts.artifact import schema

SCORED_PAIRS = schema(
    "scored_pairs",
    1,
    [
        pa.field("row_id", pa.string(), nullable=False),  # of the pair
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("chosen_score", pa.float32(), nullable=False),
        pa.field("rejected_score", pa.float32(), nullable=False),
    ],
)
