"""Pairs: those that the log has, and those that votes on one prompt make; what DPO and reward models learn from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.rows import content_id
from stages.contracts.tokens import TOKENS
from stages.rows.origins import Origins
from stages.rows.scored import scored_tokens
from stages.rows.table import FoundRows, refuse_turn_weights, training_table

SPLITS = ("train", "test")
_IDS = ("input_ids", "prompt_length")


def pair_rows(
    tokens: Path,
    reference_logps: Path | None = None,
    margins: "Margins | None" = None,
    origins: Origins | None = None,
) -> FoundRows:
    """The pairs of both splits, chosen row and rejected partner.

    Rows that came as a pair are one. Of rows with votes on a prompt, each desired completion makes a pair with an
    undesired one: as many as there are of the more numerous kind, the other kind's taken in turn. Pairs of the log come
    first, each in the order in which the pairs begin among the rows. A pair whose prompt truncation cut differently is
    left out.

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`; None leaves its columns null.
        margins: where the log says by how much a chosen completion is better; None asks for no margin.
        origins: what each completion is compared with, if not all with the model of `reference_logps`.

    Raises:
        ContractError: an artifact is missing or damaged, or two aren't of the same rows.
        ValueError: there are no pairs in the train split, a pair has no margin, or answers within a completion don't
            count alike.
    """
    rows = read_table(tokens, TOKENS) if reference_logps is None else scored_tokens(tokens, reference_logps)
    if origins is not None and reference_logps is not None:
        rows = origins.applied(rows, reference_logps.name)
    found = {split: _pairs_of(rows, split) for split in SPLITS}
    counts = {split: counts for split, (_, counts) in found.items()}
    if not counts["train"]["pairs"]:
        num_rows = len(rows) - counts["train"]["other_split"]
        raise ValueError(
            f"{tokens}: expected pairs in the train split, found none among {num_rows} rows; give a log with chosen "
            "and rejected, or with votes on several answers to a prompt"
        )
    table = pa.concat_tables(table for table, _ in found.values())
    for side in _SIDES:
        refuse_turn_weights(rows.take(table[side]))
    if margins is not None:
        table = table.set_column(table.column_names.index("margin"), "margin", margins.of(pair_ids(table, rows)))
    return FoundRows(table, counts)


def pair_ids(pairs: pa.Table, tokens: pa.Table) -> list[str]:
    """Id of each pair: that of the log, or a hash of its two rows.

    Args:
        pairs: rows of `TRAINING_ROWS`.
        tokens: the table that they are places in.
    """
    sides = [tokens.select(["row_id", "pair_id"]).take(pairs[name]).to_pylist() for name in _SIDES]
    return [
        chosen["pair_id"] or content_id(chosen["row_id"], rejected["row_id"])
        for chosen, rejected in zip(*sides, strict=True)
    ]


_SIDES = ("row", "partner")
_Pair = tuple[int, int]


def _pairs_of(rows: pa.Table, split: str) -> tuple[pa.Table, dict[str, int]]:
    """The pairs of a split, and what became of its rows."""
    at = np.flatnonzero(pc.equal(rows["split"], split).to_numpy())
    inside = rows.take(pa.array(at))
    kinds = inside.select(["prompt_id", "pair_id", "label"]).to_pydict()
    given, made = list(_given_pairs(kinds)), list(_pairs_from_votes(kinds))
    places = np.array([*given, *made], dtype=np.int64).reshape(-1, 2)
    sides = [inside.take(pa.array(side)) for side in places.T]
    is_same = _have_same_prompts(sides)
    num_labelled = pc.sum(pc.is_valid(inside["label"])).as_py() or 0
    counts = {
        "pairs": int(is_same.sum()),
        "pairs_given": len(given),
        "pairs_from_votes": len(made),
        "pairs_with_prompts_cut_differently": int((~is_same).sum()),
        "rows_without_partner": num_labelled - len(np.unique(places)),
        "without_label": len(inside) - num_labelled,
        "other_split": len(rows) - len(inside),
    }
    weights = pc.divide(pc.add(sides[0]["weight"], sides[1]["weight"]), pa.scalar(2.0, pa.float32()))
    columns = {"weight": weights, "split": sides[0]["split"]}
    for name, side, place in zip(_SIDES, sides, places.T, strict=True):
        prefix = "" if name == "row" else f"{name}_"
        columns |= {name: pa.array(at[place], pa.int32()), f"{prefix}length": pc.list_value_length(side["input_ids"])}
        if "reference_logps" in rows.column_names:
            columns[f"{prefix}reference_logps"] = side["reference_logps"]
    return training_table(columns).filter(pa.array(is_same)), counts


def _given_pairs(rows: Mapping[str, Sequence[Any]]) -> Iterator[_Pair]:
    """Where the chosen and the rejected row of each pair stand that has both."""
    places: dict[str, dict[bool, int]] = {}
    for place, (pair_id, label) in enumerate(zip(rows["pair_id"], rows["label"], strict=True)):
        if pair_id is not None:
            places.setdefault(pair_id, {})[label] = place
    for pair in places.values():
        if len(pair) == 2:
            yield pair[True], pair[False]


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
        yield from zip(*(islice(cycle(found[label]), number) for label in (True, False)), strict=True)


def _have_same_prompts(sides: Sequence[pa.Table]) -> NDArray[np.bool_]:
    prompts = [
        [ids[:length] for ids, length in zip(*(side[name].to_pylist() for name in _IDS), strict=True)] for side in sides
    ]
    return np.array([first == second for first, second in zip(*prompts, strict=True)], dtype=bool)


class Margins:
    """Says by how much the chosen completion of each pair should win, as the log has it.

    Args:
        completions: `completions` artifact, which keeps the columns of the log.
        column: the log's column with the margin.
        values: the margin that each text of that column stands for. None: the column holds numbers.
    """

    def __init__(self, completions: Path, column: str, values: Mapping[str, float] | None = None) -> None:
        self.column = column
        self.values = values
        rows = read_table(completions, COMPLETIONS, columns=["pair_id", "source"])
        self.sources = dict(zip(rows["pair_id"].to_pylist(), rows["source"].to_pylist(), strict=True))

    def of(self, names: Sequence[str]) -> pa.Array:
        """Margins of the pairs of these ids. Float32.

        Raises:
            ValueError: a pair has no finite number in such a column, as one that votes make has none.
        """
        return pa.array([self._margin(name) for name in names], pa.float32())

    def _margin(self, pair_id: str) -> float:
        source = json.loads(self.sources.get(pair_id, "{}"))
        found = source.get(self.column)
        margin = found if self.values is None else self.values.get(found) if isinstance(found, str) else None
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not np.isfinite(margin):
            known = "a finite number" if self.values is None else f"one of {', '.join(self.values)}"
            raise ValueError(
                f"margin_column: expected {known} in the column {self.column!r} of every pair, found {found!r} in "
                f"{pair_id}, which has {', '.join(sorted(source)) or 'no columns'}; name another column, or null"
            )
        return float(margin)
