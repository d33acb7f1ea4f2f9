"""Rows of `tokens` beside their log-probabilities under the reference: the one place where the two are joined."""

from pathlib import Path

import pyarrow as pa

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS


def scored_tokens(tokens: Path, reference_logps: Path) -> pa.Table:
    """All rows of `tokens` with the columns `reference_logps` and `num_tokens` of the reference's artifact.

    Raises:
        ContractError: an artifact is missing or damaged, or the two aren't of the same rows.
    """
    rows = read_table(tokens, TOKENS)
    reference = read_table(reference_logps, REFERENCE_LOGPS, columns=["row_id", "logps", "num_tokens"])
    check_same_rows(reference_logps, reference["row_id"], rows["row_id"], what=f"the rows of {tokens}")
    return rows.append_column("reference_logps", reference["logps"]).append_column(
        "num_tokens", reference["num_tokens"]
    )


def check_same_rows(reference_logps: Path, found: pa.ChunkedArray, expected: pa.ChunkedArray, *, what: str) -> None:
    """Raise ContractError unless log-probabilities are those of the rows that they are read for."""
    if not found.combine_chunks().equals(expected.combine_chunks()):
        raise ContractError(f"{reference_logps}: expected {what} in their order, found others; rerun the stage of it")
