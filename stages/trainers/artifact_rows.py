"""Rows to train on, joined from the artifacts that hold their columns."""

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.rows import content_id
from stages.contracts.tokens import TOKENS
from stages.text.mismatch import mismatched_table

_PROMPT_COLUMNS = ("desired_weight", "undesired_weight", "logit_offset")


class TrainingRows(NamedTuple):
    """Rows of the training split, and how many there are of each kind."""

    dataset: Dataset
    counts: dict[str, int]
    """What there is to train on, and what was left out for which reason."""


def labelled_training_rows(
    tokens: Path,
    reference_logps: Path,
    density_ratios: Path | None = None,
    mismatched_reference_logps: Path | None = None,
) -> TrainingRows:
    """Rows of the training split that have a label, with what the stages computed for them as columns.

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        density_ratios: `density_ratios` artifact, one row per prompt; None adds no columns of prompts.
        mismatched_reference_logps: `reference_logps` artifact of the mismatched rows; None adds no such rows.

    Raises:
        ContractError: an artifact is missing, two aren't of the same rows, or a prompt has no density ratio.
    """
    rows = _with_reference(tokens, reference_logps)
    is_train, is_labelled = pc.equal(rows["split"], "train"), pc.is_valid(rows["label"])
    kept = rows.filter(pc.and_(is_train, is_labelled))
    desired = pc.sum(kept["label"]).as_py() or 0
    counts = {
        "desired": desired,
        "undesired": kept.num_rows - desired,
        "without_label": pc.sum(pc.and_(is_train, pc.invert(is_labelled))).as_py() or 0,
        "held_out": pc.sum(pc.invert(is_train)).as_py() or 0,
    }
    if density_ratios is not None:
        kept = _with_prompt_columns(kept, density_ratios)
    if mismatched_reference_logps is not None:
        kept = _with_mismatched(kept, tokens, mismatched_reference_logps)
    return TrainingRows(_dataset(kept.drop_columns(["prompt_id", "pair_id", "split", "truncated"])), counts)


def paired_training_rows(tokens: Path, reference_logps: Path) -> TrainingRows:
    """Pairs of the training split, with the log-probabilities of both completions under the reference as columns.

    Rows that came as a pair are one. Of rows with votes on a prompt, each desired completion makes a pair with an
    undesired one: as many as there are of the more numerous kind, the other kind's taken in turn.

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.

    Raises:
        ContractError: an artifact is missing, or the two aren't of the same rows.
        ValueError: there is no pair.
    """
    rows = _with_reference(tokens, reference_logps)
    is_train = pc.equal(rows["split"], "train")
    kept = rows.filter(is_train)
    kinds = kept.select(["row_id", "prompt_id", "pair_id", "label"]).to_pydict()
    given = dict(_given_pairs(kinds))
    made = dict(_pairs_from_votes(kinds))
    pairs = {**given, **made}
    if not pairs:
        raise ValueError(
            f"{tokens}: expected pairs in the training split, found none; give rows with chosen and rejected, or votes "
            "of both kinds on one prompt"
        )
    table, cut_differently = _pair_table(kept, pairs)
    labelled = pc.sum(pc.is_valid(kept["label"])).as_py() or 0
    counts = {
        "pairs": table.num_rows,
        "pairs_given": len(given),
        "pairs_from_votes": len(made),
        "pairs_with_prompts_cut_differently": cut_differently,
        "rows_without_partner": labelled - len({place for pair in pairs.values() for place in pair}),
        "without_label": kept.num_rows - labelled,
        "held_out": rows.num_rows - kept.num_rows,
    }
    return TrainingRows(_dataset(table), counts)


def _with_reference(tokens: Path, reference_logps: Path) -> pa.Table:
    rows = read_table(tokens, TOKENS)
    reference = read_table(reference_logps, REFERENCE_LOGPS, columns=["row_id", "logps"])
    if not rows["row_id"].equals(reference["row_id"]):
        raise ContractError(f"{reference_logps}: expected the rows of {tokens}, found others; rerun reference_logprobs")
    return rows.append_column("reference_logps", reference["logps"])


def _with_prompt_columns(rows: pa.Table, density_ratios: Path) -> pa.Table:
    table = read_table(density_ratios, DENSITY_RATIOS)
    places = pc.index_in(rows["prompt_id"], value_set=table["prompt_id"])
    if places.null_count:
        missing = rows["prompt_id"].filter(pc.is_null(places))[0]
        raise ContractError(
            f"{density_ratios}: expected every prompt of the rows, found none for {missing}; rerun density_ratio"
        )
    for name in _PROMPT_COLUMNS:
        rows = rows.append_column(name, table[name].take(places))
    return rows


def _with_mismatched(rows: pa.Table, tokens: Path, reference_logps: Path) -> pa.Table:
    # Making the rows again costs less than reading them, and shows that the log-probabilities are theirs.
    made = mismatched_table(rows.select([field.name for field in TOKENS.fields]))
    reference = read_table(reference_logps, REFERENCE_LOGPS, columns=["row_id", "logps"])
    if not made["row_id"].combine_chunks().equals(reference["row_id"].combine_chunks()):
        raise ContractError(
            f"{reference_logps}: expected the mismatched rows of {tokens}, found others; "
            "rerun mismatched_reference_logprobs"
        )
    columns = {name: made[name] for name in ("input_ids", "prompt_length")}
    for name, column in columns.items():
        rows = rows.append_column(f"kl_{name}", column)
    return rows.append_column("reference_kl_logps", reference["logps"])


_Pair = tuple[str, tuple[int, int]]


def _given_pairs(rows: dict[str, list[Any]]) -> Iterator[_Pair]:
    """Id of each pair that has both of its rows, and where its chosen and its rejected row stand."""
    places: dict[str, dict[bool, int]] = {}
    for place, (pair_id, label) in enumerate(zip(rows["pair_id"], rows["label"], strict=True)):
        if pair_id is not None:
            places.setdefault(pair_id, {})[label] = place
    for pair_id, pair in places.items():
        if len(pair) == 2:
            yield pair_id, (pair[True], pair[False])


def _pairs_from_votes(rows: dict[str, list[Any]]) -> Iterator[_Pair]:
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


def _pair_table(rows: pa.Table, pairs: dict[str, tuple[int, int]]) -> tuple[pa.Table, int]:
    """Columns of each pair; and how many were left out because truncation cut their prompts differently."""
    places = np.array(list(pairs.values()), dtype=np.int64).reshape(-1, 2)
    chosen, rejected = (rows.take(pa.array(side)) for side in places.T)
    prompts = [
        [ids[:length] for ids, length in zip(side["input_ids"].to_pylist(), side["prompt_length"].to_pylist())]  # noqa: B905
        for side in (chosen, rejected)
    ]
    is_same = pa.array([first == second for first, second in zip(*prompts, strict=True)], pa.bool_())
    weights = pc.divide(pc.add(chosen["weight"], rejected["weight"]), pa.scalar(2.0, pa.float32()))
    columns = {"row_id": pa.array(list(pairs), pa.string()), "weight": weights}
    for prefix, side in (("chosen_", chosen), ("rejected_", rejected)):
        columns |= {f"{prefix}{name}": side[name] for name in ("input_ids", "prompt_length")}
        columns[f"reference_{prefix}logps"] = side["reference_logps"]
    table = pa.table(columns).filter(is_same)
    return table, len(pairs) - table.num_rows


def _dataset(table: pa.Table) -> Dataset:
    return Dataset(InMemoryTable(table.combine_chunks()))
