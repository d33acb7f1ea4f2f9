"""Mismatched rows of a dataset that a trainer was given without them."""

import numpy as np
from datasets import Dataset

from stages.rows.mismatched import mismatched, mismatched_spans, partners
from stages.rows.raw import MISMATCHED

_ORDER_SEED = 0


def with_mismatched_rows(rows: Dataset, name: str) -> Dataset:
    """`rows` with columns for each prompt followed by the completion of another row.

    The partners come from one fixed permutation of the table, so that they stay the same in every epoch.

    Args:
        rows: encoded rows; returned as they are if they have the columns already.
        name: what to call them in messages.

    Raises:
        ValueError: all rows have the same prompt.
    """
    if f"{MISMATCHED}input_ids" in rows.column_names:
        return rows
    ids, lengths = rows["input_ids"][:], rows["prompt_length"][:]
    prompts = [tuple(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    order = np.random.Generator(np.random.PCG64(_ORDER_SEED)).permutation(len(prompts))
    try:
        found = partners(prompts, order)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    made = mismatched(ids, lengths, found)
    columns = {"input_ids": made, "prompt_length": lengths}
    if "spans" in rows.column_names:
        columns["spans"] = mismatched_spans(rows["spans"][:], made, lengths, found)
    for column, values in columns.items():
        rows = rows.add_column(f"{MISMATCHED}{column}", values)
    return rows
