"""Artifact `reference_logps`: log-probability of each completion under the reference, in the order of `tokens`."""

import pyarrow as pa

from stages.contracts.artifact import schema

REFERENCE_LOGPS = schema(
    "reference_logps",
    1,
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("logps", pa.float32(), nullable=False),  # sum over the completion's tokens, nats
        pa.field("num_tokens", pa.int32(), nullable=False),  # tokens of the completion
        pa.field("token_logps", pa.list_(pa.float32())),  # one per token of the completion; null unless asked for
    ],
)
