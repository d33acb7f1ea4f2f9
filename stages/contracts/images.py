"""Artifact `images`: sampled images of held-out prompts, policy beside reference, drawn from the same noise."""

import pyarrow as pa

from stages.contracts.artifact import schema

IMAGES = schema(
    "images",
    1,
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("policy", pa.list_(pa.binary()), nullable=False),  # PNG files
        pa.field("reference", pa.list_(pa.binary()), nullable=False),
        pa.field("policy_rewards", pa.list_(pa.float32()), nullable=False),  # of each image
        pa.field("reference_rewards", pa.list_(pa.float32()), nullable=False),
    ],
)
