"""Artifact `prompt_embeddings`: one vector per distinct prompt, in the order in which prompts first appear."""

import pyarrow as pa

from stages.contracts.artifact import schema

PROMPT_EMBEDDINGS = schema(
    "prompt_embeddings",
    1,
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), 1), nullable=False),  # fixed-size list of any width d
    ],
)
