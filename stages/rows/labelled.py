"""Rows with a label, and what other stages computed of them; the rows that BCO and KTO learn from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import ContractError, read_manifest, read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.rows.mismatched import mismatched_places, mismatched_rows
from stages.rows.origins import Origins
from stages.rows.scored import check_same_rows, scored_tokens
from stages.rows.table import FoundRows, places_of, refuse_turn_weights, training_table

_PROMPT_COLUMNS = ("desired_weight", "undesired_weight", "logit_offset")


def labelled_rows(
    tokens: Path,
    reference_logps: Path,
    density_ratios: Path | None = None,
    mismatched_reference_logps: Path | None = None,
    origins: Origins | None = None,
) -> FoundRows:
    """Rows with a label, in the order of `tokens`.

    Args:
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        density_ratios: `density_ratios` artifact, one row per prompt; None leaves the columns of prompts null.
        mismatched_reference_logps: `reference_logps` artifact of the mismatched rows; None gives no partners.
        origins: what each row is compared with, if not all with the model of `reference_logps`.

    Raises:
        ContractError: an artifact is missing, two aren't of the same rows, or a prompt has no density ratio.
        ValueError: prompts are to be weighted by how the two labels differ, and there is too little of one; a row's
            origin has no reference; KTO is given several; or answers within a completion don't count alike.
    """
    table = scored_tokens(tokens, reference_logps)
    if origins is not None:
        if mismatched_reference_logps is not None:
            raise ValueError(
                "expected no origin_column with --mismatched-reference-logps, found both: KTO compares rewards with "
                "the divergence from one reference; BCO and DPO take several"
            )
        table = origins.applied(table, reference_logps.name)
    is_train, is_labelled = pc.equal(table["split"], "train"), pc.is_valid(table["label"])
    kept = table.filter(is_labelled)
    refuse_turn_weights(kept)
    columns = {name: kept[name] for name in ("label", "weight", "split", "reference_logps")}
    columns |= {"row": places_of(is_labelled), "length": pc.list_value_length(kept["input_ids"])}
    counts = _counts(table, is_train, is_labelled)
    if density_ratios is not None:
        columns |= _prompt_columns(kept["prompt_id"], density_ratios)
    if mismatched_reference_logps is not None:
        columns |= _mismatched_columns(table, columns["row"], mismatched_reference_logps, tokens)
    return FoundRows(training_table(columns), {"train": counts})


def _counts(table: pa.Table, is_train: pa.ChunkedArray, is_labelled: pa.ChunkedArray) -> dict[str, int]:
    """What there is to train on, and what was left out for which reason."""
    labels = table["label"].filter(pc.and_(is_train, is_labelled))
    desired = pc.sum(labels).as_py() or 0
    return {
        "desired": desired,
        "undesired": len(labels) - desired,
        "without_label": pc.sum(pc.and_(is_train, pc.invert(is_labelled))).as_py() or 0,
        "held_out": pc.sum(pc.invert(is_train)).as_py() or 0,
    }


def _prompt_columns(prompt_ids: pa.ChunkedArray, density_ratios: Path) -> dict[str, pa.ChunkedArray]:
    facts = read_manifest(density_ratios, DENSITY_RATIOS)["meta"]
    if "not_measured" in facts and facts["correction"] != "none":
        raise ValueError(f"density_ratio.correction is {facts['correction']}, but {facts['not_measured']}")
    table = read_table(density_ratios, DENSITY_RATIOS)
    places = pc.index_in(prompt_ids, value_set=table["prompt_id"])
    if places.null_count:
        missing = prompt_ids.filter(pc.is_null(places))[0]
        raise ContractError(
            f"{density_ratios}: expected every prompt of the rows, found none for {missing}; rerun density_ratio"
        )
    return {name: table[name].take(places) for name in _PROMPT_COLUMNS}


def _mismatched_columns(tokens: pa.Table, places: pa.Array, reference_logps: Path, name: Path) -> dict[str, pa.Array]:
    """For each labelled row to train on, whose completion stands behind its prompt; null for those held out."""
    pairing = mismatched_places(tokens)
    # Making the rows again costs less than reading them, and shows that the log-probabilities are theirs.
    made = mismatched_rows(tokens, pairing)
    reference = read_table(reference_logps, REFERENCE_LOGPS, columns=["row_id", "logps"])
    check_same_rows(reference_logps, reference["row_id"], made["row_id"], what=f"the mismatched rows of {name}")
    at = pc.index_in(places, value_set=pa.array(pairing.rows, pa.int32()))
    columns = {
        "partner": pa.array(pairing.partners, pa.int32()),
        "partner_length": pc.list_value_length(made["input_ids"]),
        "partner_reference_logps": reference["logps"],
    }
    return {name: column.take(at) for name, column in columns.items()}
