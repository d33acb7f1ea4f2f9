"""Prompts with the completion of another row, which KTO estimates the divergence from the reference with.

The partner of a row is the one before it in a fixed order of the table that has another prompt, the last before the
first. So a new row changes the mismatched rows of its neighbours only, and what was computed for the others stays.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.contracts.rows import content_id
from stages.contracts.tokens import TOKENS
from stages.rows.table import places_of
from stages.text.truncation import cut_spans


def partners(prompts: Sequence[Hashable], order: NDArray[np.int64] | None = None) -> list[int]:
    """For each row, the row whose completion stands behind its prompt.

    Args:
        prompts: what names the prompt of each row.
        order: the rows in the order in which they follow each other; None takes them as they stand.

    Raises:
        ValueError: all rows have the same prompt, so that no completion is mismatched.
    """
    number = len(prompts)
    order = np.arange(number) if order is None else order
    names: dict[Hashable, int] = {}
    codes = np.array([names.setdefault(prompt, len(names)) for prompt in prompts], dtype=np.int64)[order]
    begins = codes != np.roll(codes, 1)
    if not begins.any():
        raise ValueError(
            f"expected at least two prompts to mismatch completions between, found one in {number} rows; KTO estimates "
            "the divergence from mismatched rows: give more prompts, or take loss_type apo_zero_unpaired"
        )
    # Rows of one prompt that follow each other share the partner of the first of them.
    first = np.flatnonzero(begins)[0]
    places = np.where(np.roll(begins, -first), np.arange(number), 0)
    run_starts = np.roll(np.maximum.accumulate(places), first) + first
    found = np.empty(number, dtype=np.int64)
    found[order] = order[(run_starts - 1) % number]
    return found.tolist()


def mismatched(
    input_ids: Sequence[Sequence[int]], prompt_lengths: Sequence[int], row_partners: Sequence[int]
) -> list[list[int]]:
    """Ids of each prompt followed by its partner's completion, cut to the longest row that there is.

    Args:
        input_ids: ids of prompt and completion of each row.
        prompt_lengths: how many of them are the prompt's.
        row_partners: what `partners` gave.
    """
    longest = max(map(len, input_ids))
    return [
        [*ids[:length], *input_ids[partner][prompt_lengths[partner] :]][:longest]
        for ids, length, partner in zip(input_ids, prompt_lengths, row_partners, strict=True)
    ]


def mismatched_spans(
    spans: Sequence[Sequence[int] | None],
    rows: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    row_partners: Sequence[int],
) -> list[list[int] | None]:
    """What the assistant said of the completion in each mismatched row: its partner's, as far as the row goes.

    Args:
        spans: of each row of the table, in front of which its own prompt stands.
        rows: what `mismatched` gave.
        prompt_lengths: how many tokens of each are the prompt's.
        row_partners: what `partners` gave.
    """
    return [
        cut_spans(spans[partner], len(row) - length)
        for row, length, partner in zip(rows, prompt_lengths, row_partners, strict=True)
    ]


class Pairing(NamedTuple):
    """Which rows are mismatched with which."""

    rows: list[int]
    """Places of the labelled rows of the training split, ascending."""
    partners: list[int]
    """For each of them, the place of the row whose completion stands behind its prompt."""


def mismatched_places(tokens: pa.Table) -> Pairing:
    """The partner of each labelled row of the training split.

    Args:
        tokens: table with the columns of `TOKENS`.

    Raises:
        ValueError: all rows have the same prompt.
    """
    places = places_of(pc.and_(pc.equal(tokens["split"], "train"), pc.is_valid(tokens["label"])))
    if not len(places):
        return Pairing([], [])
    kept = tokens.select(["row_id", "prompt_id"]).take(places)
    # Row ids are hashes, so their order is as good as random, and the same wherever rows stand in the table.
    order = np.argsort(np.array(kept["row_id"].to_pylist()), kind="stable")
    found = partners(kept["prompt_id"].to_pylist(), order)
    return Pairing(places.to_pylist(), places.take(pa.array(found, pa.int64())).to_pylist())


def mismatched_rows(tokens: pa.Table, pairing: Pairing) -> pa.Table:
    """The mismatched row of each row of `pairing`, in their order.

    Args:
        tokens: table with the columns of `TOKENS`.
        pairing: what `mismatched_places` gave for it.

    Returns:
        A table of that schema; a row's id follows from the two that it was made of.
    """
    names = [field.name for field in (*TOKENS.fields, *TOKENS.optional) if field.name in tokens.column_names]
    kept = tokens.select(names).take(pa.array(pairing.rows, pa.int64()))
    if not kept.num_rows:
        return TOKENS.conform(kept)
    found = pc.index_in(pa.array(pairing.partners), value_set=pa.array(pairing.rows)).to_pylist()
    ids = kept["row_id"].to_pylist()
    rows = mismatched(kept["input_ids"].to_pylist(), kept["prompt_length"].to_pylist(), found)
    # How far a row was cut depends on the longest one of the table.
    made = [content_id(name, ids[partner], len(row)) for name, partner, row in zip(ids, found, rows, strict=True)]
    columns = {"row_id": pa.array(made), "input_ids": pa.array(rows, pa.list_(pa.int32()))}
    if "spans" in names:
        spans, lengths = kept["spans"].to_pylist(), kept["prompt_length"].to_pylist()
        columns["spans"] = pa.array(mismatched_spans(spans, rows, lengths, found), pa.list_(pa.int32()))
    others = {name: kept[name] for name in names if name not in columns}
    return TOKENS.conform(pa.table({**columns, **others}))
