"""Pairs of rows of the artifact `tokens`: those that the log has, and those that votes on one prompt make."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.rows import content_id
from stages.contracts.tokens import TOKENS

_IDS = ("input_ids", "prompt_length")


class Pairs(NamedTuple):
    """Pairs of one split, and what became of its rows."""

    table: pa.Table
    """Columns `row_id` (the pair's id), `prompt_id`, `weight`, and `input_ids` and `prompt_length` with the prefixes
    `chosen_` and `rejected_`; `reference_chosen_logps` and `reference_rejected_logps` if rows have `reference_logps`.
    Pairs of the log come first, each in the order in which the pairs begin among the rows."""
    counts: dict[str, int]
    """`pairs`; of those `pairs_given` by the log and `pairs_from_votes`; `pairs_with_prompts_cut_differently`, left
    out; `rows_without_partner` and rows `without_label`; rows of an `other_split`."""


def read_pairs(tokens: Path, *, split: str) -> Pairs:
    """The pairs of a split of the artifact `tokens`; see `pairs_of`.

    Raises:
        ContractError: the artifact is missing or damaged.
        ValueError: there are no pairs in the split.
    """
    return pairs_of(read_table(tokens, TOKENS), split=split, name=tokens)


def pairs_of(rows: pa.Table, *, split: str, name: Path) -> Pairs:
    """The pairs of a split.

    Rows that came as a pair are one. Of rows with votes on a prompt, each desired completion makes a pair with an
    undesired one: as many as there are of the more numerous kind, the other kind's taken in turn.

    Args:
        rows: table with the columns of `TOKENS`, with or without `reference_logps`.
        split: "train" or "test".
        name: the artifact that they come from, for messages.

    Raises:
        ValueError: there are no pairs in the split.
    """
    inside = rows.filter(pc.equal(rows["split"], split))
    kinds = inside.select(["row_id", "prompt_id", "pair_id", "label"]).to_pydict()
    given, made = dict(_given_pairs(kinds)), dict(_pairs_from_votes(kinds))
    pairs = {**given, **made}
    table = _pair_table(inside, pairs)
    num_labelled = pc.sum(pc.is_valid(inside["label"])).as_py() or 0
    counts = {
        "pairs": len(table),
        "pairs_given": len(given),
        "pairs_from_votes": len(made),
        "pairs_with_prompts_cut_differently": len(pairs) - len(table),
        "rows_without_partner": num_labelled - len({place for pair in pairs.values() for place in pair}),
        "without_label": len(inside) - num_labelled,
        "other_split": len(rows) - len(inside),
    }
    if not len(table):
        raise ValueError(
            f"{name}: expected pairs in the split {split}, found none among {len(inside)} rows; give a log with "
            "chosen and rejected, or with votes on several answers to a prompt"
        )
    return Pairs(table, counts)


_Pair = tuple[str, tuple[int, int]]


def _given_pairs(rows: Mapping[str, Sequence[Any]]) -> Iterator[_Pair]:
    """Id of each pair that has both of its rows, and where its chosen and its rejected row stand."""
    places: dict[str, dict[bool, int]] = {}
    for place, (pair_id, label) in enumerate(zip(rows["pair_id"], rows["label"], strict=True)):
        if pair_id is not None:
            places.setdefault(pair_id, {})[label] = place
    for pair_id, pair in places.items():
        if len(pair) == 2:
            yield pair_id, (pair[True], pair[False])


def _pairs_from_votes(rows: Mapping[str, Sequence[Any]]) -> Iterator[_Pair]:
    """The same of single rows that answer one prompt."""
    places: dict[str, dict[bool, list[int]]] = {}
    for place, (prompt, pair_id, label) in enumerate(
        zip(rows["prompt_id"], rows["pair_id"], rows["label"], strict=True)
    ):
        if pair_id is None and label is not None:
            places.setdefault(prompt, {True: [], False: []})[label].append(place)
    for found in places.values():
        number = max(map(len, found.values())) if all(found.values()) else 0
        for pair in zip(*(islice(cycle(found[label]), number) for label in (True, False)), strict=True):
            yield content_id(*(rows["row_id"][place] for place in pair)), pair


def _pair_table(rows: pa.Table, pairs: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Columns of each pair but those whose prompts truncation cut differently."""
    places = np.array(list(pairs.values()), dtype=np.int64).reshape(-1, 2)
    chosen, rejected = (rows.take(pa.array(side)) for side in places.T)
    prompts = [
        [ids[:length] for ids, length in zip(*(side[name].to_pylist() for name in _IDS), strict=True)]
        for side in (chosen, rejected)
    ]
    is_same = pa.array([first == second for first, second in zip(*prompts, strict=True)], pa.bool_())
    columns = {
        "row_id": pa.array(list(pairs), pa.string()),
        "prompt_id": chosen["prompt_id"],
        "weight": pc.divide(pc.add(chosen["weight"], rejected["weight"]), pa.scalar(2.0, pa.float32())),
    }
    for prefix, side in (("chosen_", chosen), ("rejected_", rejected)):
        columns |= {f"{prefix}{name}": side[name] for name in _IDS}
        if "reference_logps" in rows.column_names:
            columns[f"reference_{prefix}logps"] = side["reference_logps"]
    return pa.table(columns).filter(is_same).combine_chunks()


def pair_margins(
    pairs: pa.Table, completions: Path, column: str, values: Mapping[str, float] | None = None
) -> pa.Array:
    """By how much the chosen completion of each pair should win, as the log says.

    Args:
        pairs: `Pairs.table`.
        completions: `completions` artifact, which keeps the columns of the log.
        column: the log's column with the margin.
        values: the margin that each text of that column stands for. None: the column holds numbers.

    Returns:
        Float32, in the order of `pairs`.

    Raises:
        ValueError: a pair has no finite number in such a column, as one that votes make has none.
    """
    rows = read_table(completions, COMPLETIONS, columns=["pair_id", "source"])
    sources = dict(zip(rows["pair_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
    margins = []
    for pair_id in pairs["row_id"].to_pylist():
        source = json.loads(sources.get(pair_id, "{}"))
        found = source.get(column)
        margin = found if values is None else values.get(found) if isinstance(found, str) else None
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not np.isfinite(margin):
            known = "a finite number" if values is None else f"one of {', '.join(values)}"
            raise ValueError(
                f"margin_column: expected {known} in the column {column!r} of every pair, found {found!r} in "
                f"{pair_id}, which has {', '.join(sorted(source)) or 'no columns'}; name another column, or null"
            )
        margins.append(float(margin))
    return pa.array(margins, pa.float32())
