"""Artifact `generations`: sampled completions of the held-out prompts, policy beside reference."""

import pyarrow as pa

from stages.contracts.artifact import schema

GENERATIONS = schema(
    "generations",
    1,
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # text after templating
        pa.field("slice", pa.string()),  # value of the column that results are sliced by; null if none
        pa.field("policy", pa.list_(pa.string()), nullable=False),  # sampled completions, text without specials
        pa.field("reference", pa.list_(pa.string()), nullable=False),
        pa.field("policy_scores", pa.list_(pa.float32())),  # true reward of each, where a judge is named
        pa.field("reference_scores", pa.list_(pa.float32())),
    ],
)
