"""Artifact `density_ratios`: how likely each prompt is among desired rows, and what the correction makes of it."""

import pyarrow as pa

from stages.contracts.artifact import schema

DENSITY_RATIOS = schema(
    "density_ratios",
    1,
    [
        pa.field("prompt_id", pa.string(), nullable=False),  # in the order of `prompt_embeddings`
        pa.field("desirable_probability", pa.float32(), nullable=False),  # p(desired | prompt), classes balanced
        pa.field("density_ratio", pa.float32(), nullable=False),  # p / (1 - p), clamped
        pa.field("desired_weight", pa.float32(), nullable=False),  # multiplies the loss of a desired row
        pa.field("undesired_weight", pa.float32(), nullable=False),  # multiplies the loss of an undesired row
        pa.field("logit_offset", pa.float32(), nullable=False),  # added to the classifier's logit, r - shift
    ],
)
