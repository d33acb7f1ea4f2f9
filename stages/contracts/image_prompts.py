"""Artifact `image_prompts`: what images are asked for, each prompt once."""

import pyarrow as pa

from stages.contracts.artifact import schema

IMAGE_PROMPTS = schema(
    "image_prompts",
    1,
    [
        pa.field("prompt_id", pa.string(), nullable=False),  # hash of the prompt
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # "train" or "test", by a hash of the prompt
    ],
)
