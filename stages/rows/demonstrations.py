"""Demonstrations, and completions that people liked; the rows that supervised fine-tuning learns from."""

from pathlib import Path

import pyarrow.compute as pc

from stages.contracts.artifact import read_table
from stages.contracts.tokens import TOKENS
from stages.rows.table import FoundRows, places_of, training_table


def demonstration_rows(tokens: Path) -> FoundRows:
    """Rows of `tokens` that are desired or have no label, in its order.

    Raises:
        ContractError: the artifact is missing or damaged.
        ValueError: there is none in the train split.
    """
    table = read_table(tokens, TOKENS, columns=["label", "weight", "split", "input_ids"])
    is_liked = pc.fill_null(table["label"], fill_value=True)
    kept = table.filter(is_liked)
    num_train = pc.sum(pc.equal(kept["split"], "train")).as_py() or 0
    counts = {"undesired": len(table) - len(kept), "train": num_train, "held_out": len(kept) - num_train}
    if not num_train:
        raise ValueError(f"{tokens}: expected demonstrations to learn from, found none ({counts})")
    columns = {name: kept[name] for name in ("label", "weight", "split")}
    columns |= {"row": places_of(is_liked), "length": pc.list_value_length(kept["input_ids"])}
    return FoundRows(training_table(columns), {"train": counts})
