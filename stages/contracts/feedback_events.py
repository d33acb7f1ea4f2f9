"""Artifact `feedback_events`: what people did, one row per vote, answer or demonstration, in the order of the log.

An event stands under its number, by which the artifact `ledger` says what became of it. Prompts and answers are as the
log gives them, untemplated, so that no model is needed to make or to read them.
"""

import pyarrow as pa

from stages.contracts.artifact import schema

FEEDBACK_EVENTS = schema(
    "feedback_events",
    1,
    [
        pa.field("event", pa.int64(), nullable=False),  # number of the event in the log, from 0, with gaps
        pa.field("layout", pa.string(), nullable=False),  # unpaired, pairs, demonstrations or prompts
        pa.field("question", pa.string(), nullable=False),  # hash of what is voted on: the prompt and its answers
        pa.field("conversation", pa.string()),  # where the log says
        pa.field("turn", pa.float64()),  # of the answer in its conversation, where the log says
        pa.field("prompt", pa.string(), nullable=False),  # JSON: text, or the messages up to the answer
        pa.field("answer", pa.string()),  # JSON: text or messages; the chosen one of a pair; null for a bare prompt
        pa.field("rejected", pa.string()),  # JSON: the other answer of a pair
        pa.field("tools", pa.string()),  # JSON: tools offered in the prompt
        pa.field("is_complete", pa.bool_(), nullable=False),  # false if generation of the answer was cut off
        pa.field("is_rejected_complete", pa.bool_(), nullable=False),  # the same of the other answer
        pa.field("label", pa.bool_()),  # what the vote says; null for pairs, demonstrations and votes taken back
        pa.field("vote", pa.string()),  # JSON: the vote as logged
        pa.field("rating", pa.float64()),  # the vote, if it is a number
        pa.field("up", pa.float64()),  # numbers of votes, if the log has counts
        pa.field("down", pa.float64()),
        pa.field("weight", pa.float64(), nullable=False),  # of a used event, what all votes that it stands for weigh
        pa.field("agree", pa.float64()),  # of a used event that raters disagree on, what the votes for it weigh
        pa.field("disagree", pa.float64()),  # and those against it
        pa.field("rater", pa.string()),
        pa.field("time", pa.float64()),  # seconds since 1970
        pa.field("model", pa.string()),  # that gave the answer, where the log says
        pa.field("file", pa.string(), nullable=False),  # where the answer stands
        pa.field("line", pa.int64(), nullable=False),  # counted from 1
        pa.field("vote_file", pa.string()),  # where the vote stands, if elsewhere
        pa.field("vote_line", pa.int64()),
        pa.field("source", pa.string(), nullable=False),  # JSON object of the log's other columns
    ],
)
