"""Artifact `completions`: the normal form of feedback, one row per prompt and completion.

The two completions of a pair are two rows that share a `pair_id`; a prompt of which no completion is known is one
row without completion. A completion of several turns holds what users and tools said between those of the assistant;
its `spans` tell the assistant's own words, which alone are learned. The same text may stand in several pairs, so
`row_id` is unique only together with `pair_id`.
"""

import pyarrow as pa

from stages.contracts.artifact import schema

COMPLETIONS = schema(
    "completions",
    1,
    [
        pa.field("row_id", pa.string(), nullable=False),  # hash of prompt and completion as given
        pa.field("prompt_id", pa.string(), nullable=False),  # hash of the prompt as given
        pa.field("pair_id", pa.string()),  # hash of prompt, chosen and rejected; null outside pairs
        pa.field("label", pa.bool_()),  # desired or chosen; null for demonstrations and bare prompts
        pa.field("weight", pa.float32(), nullable=False),  # multiplies the row's loss; 1 unless the log says
        pa.field("split", pa.string(), nullable=False),  # "train" or "test", by prompt
        pa.field("prompt", pa.string(), nullable=False),  # text after templating
        pa.field("completion", pa.string()),  # text after templating; null for a bare prompt
        pa.field("is_complete", pa.bool_(), nullable=False),  # false if generation was cut off, so no EOS is due
        pa.field("messages", pa.string(), nullable=False),  # JSON {"prompt": ..., "completion": ...} as given
        pa.field("source", pa.string(), nullable=False),  # JSON object of the log's other columns
    ],
    # Characters of `completion` that the assistant said, as start, end, start, end; null where it said all of it.
    # `span_weights` says what each of these ranges weighs in the loss; null where all count alike.
    optional=[pa.field("spans", pa.list_(pa.int32())), pa.field("span_weights", pa.list_(pa.float32()))],
)
