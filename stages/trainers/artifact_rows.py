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

_TOKEN_COLUMNS = ("row_id", "prompt_id", "label", "weight", "split", "input_ids", "prompt_length")
_PROMPT_COLUMNS = ("desired_weight", "undesired_weight", "logit_offset")


class TrainingRows(NamedTuple):
    """Labelled rows of the training split, and how many rows there are of each kind."""

    dataset: Dataset
    counts: dict[str, int]
    """`desired` and `undesired` rows to train on; `without_label` and `held_out` ones left out."""


def labelled_training_rows(tokens: Path, reference_logps: Path, density_ratios: Path | None) -> TrainingRows:
    """Rows of the training split that have a label, with what the stages computed for them as columns.

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        density_ratios: `density_ratios` artifact, one row per prompt; None adds no columns of prompts.

    Raises:
        ContractError: an artifact is missing, the two aren't of the same rows, or a prompt has no density ratio.
    """
    rows = read_table(tokens, TOKENS, columns=_TOKEN_COLUMNS)
    reference = read_table(reference_logps, REFERENCE_LOGPS, columns=["row_id", "logps"])
    if not rows["row_id"].equals(reference["row_id"]):
        raise ContractError(f"{reference_logps}: expected the rows of {tokens}, found others; rerun reference_logprobs")
    is_train, is_labelled = pc.equal(rows["split"], "train"), pc.is_valid(rows["label"])
    kept = rows.append_column("reference_logps", reference["logps"]).filter(pc.and_(is_train, is_labelled))
    desired = pc.sum(kept["label"]).as_py() or 0
    counts = {
        "desired": desired,
        "undesired": kept.num_rows - desired,
        "without_label": pc.sum(pc.and_(is_train, pc.invert(is_labelled))).as_py() or 0,
        "held_out": pc.sum(pc.invert(is_train)).as_py() or 0,
    }
    if density_ratios is not None:
        kept = _with_prompt_columns(kept, density_ratios)
    kept = kept.drop_columns(["prompt_id", "split"]).combine_chunks()
    return TrainingRows(Dataset(InMemoryTable(kept)), counts)


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
