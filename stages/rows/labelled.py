"""Rows to train on, joined from the artifacts that hold their columns."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.rows.mismatched import mismatched_table
from stages.rows.pairs import pairs_of

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

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.

    Raises:
        ContractError: an artifact is missing, or the two aren't of the same rows.
        ValueError: there is no pair.
    """
    pairs = pairs_of(_with_reference(tokens, reference_logps), split="train", name=tokens)
    return TrainingRows(_dataset(pairs.table.drop_columns(["prompt_id"])), pairs.counts)


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


def _dataset(table: pa.Table) -> Dataset:
    return Dataset(InMemoryTable(table.combine_chunks()))
