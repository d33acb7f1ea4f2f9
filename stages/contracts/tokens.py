"""Artifact `tokens`: one sequence per row, a prompt followed by one completion of it.

Every method reads this one kind: DPO and the reward model take the two rows of a pair, KTO and BCO single
labelled rows, SFT all rows. Attention masks and labels follow from `prompt_length` and are not stored.
"""

import pyarrow as pa

from stages.contracts.artifact import schema

TOKENS = schema(
    "tokens",
    1,
    [
        pa.field("row_id", pa.string(), nullable=False),  # as in `completions`
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("pair_id", pa.string()),
        pa.field("label", pa.bool_()),  # desired or chosen; null for demonstrations
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # length t
        pa.field("prompt_length", pa.int32(), nullable=False),  # input_ids[:prompt_length] is the prompt
        pa.field("truncated", pa.bool_(), nullable=False),  # whether prompt or completion was cut
    ],
    # Tokens of the completion that the assistant said, as start, end, start, end, counted from `prompt_length`; null
    # where it said all of it. The others are read, and no loss and no log-probability counts them.
    # `span_weights` says what each of these ranges weighs in the loss of SFT; null where all count alike.
    optional=[pa.field("spans", pa.list_(pa.int32())), pa.field("span_weights", pa.list_(pa.float32()))],
)
