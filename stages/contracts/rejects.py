"""Artifact `rejects`: what a stage could not use, with the reason. Nothing is dropped in silence."""

import pyarrow as pa

from stages.contracts.artifact import schema

REJECTS = schema(
    "rejects",
    1,
    [
        pa.field("file", pa.string(), nullable=False),  # file of the log, or the artifact that held the row
        pa.field("line", pa.int64(), nullable=False),  # counted from 1 in the file
        pa.field("reason", pa.string(), nullable=False),  # one of a closed list of names, such as "empty_completion"
        pa.field("detail", pa.string(), nullable=False),  # what was found and what to do about it
        pa.field("row", pa.string(), nullable=False),  # the row as JSON, or the line as it stood
    ],
)
