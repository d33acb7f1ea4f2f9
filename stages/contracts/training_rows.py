"""Artifact `training_rows`: what one method learns from, as places in the artifact that holds the text.

One row per completion, pair or prompt. Texts and token ids stay where they are, so that a filter, a mixture or a
curriculum is a stage that reads this artifact and writes another one. Columns that a method has no use for are null.
"""

from typing import Literal

import pyarrow as pa

from stages.contracts.artifact import schema

Kind = Literal["labelled", "pairs", "demonstrations", "prompts", "image_prompts"]
"""What rows are of; their artifact says it, and a method reads one kind."""
TRAINING_ROWS = schema(
    "training_rows",
    1,
    [
        pa.field("row", pa.int32(), nullable=False),  # place in `tokens`, of prompts in `completions`, from 0
        pa.field("partner", pa.int32()),  # place of a pair's rejected row, or of the row whose completion is mismatched
        pa.field("label", pa.bool_()),  # desired or undesired
        pa.field("weight", pa.float32(), nullable=False),  # multiplies the row's loss
        pa.field("desired_weight", pa.float32()),  # of the prompt, as in `density_ratios`
        pa.field("undesired_weight", pa.float32()),
        pa.field("logit_offset", pa.float32()),
        pa.field("margin", pa.float32()),  # by how much a pair's chosen completion should win
        pa.field("reference_logps", pa.float32()),  # of the row under the reference; nats
        pa.field("partner_reference_logps", pa.float32()),  # of the partner, or of the prompt with its completion
        pa.field("length", pa.int32()),  # tokens of the row; null for prompts
        pa.field("partner_length", pa.int32()),  # the same of the partner, or of the mismatched row
        pa.field("split", pa.string(), nullable=False),  # "train" or "test"
    ],
)
