"""Stage `reference_logprobs`: log-probability of every completion under the reference, computed once for all methods.

    dvc repro reference_logprobs

BCO, KTO and DPO compare the policy with this frozen model. Results per row are kept in a memo, so that after a data
update only new rows are computed, and a killed run goes on where it was.
"""

from typing import Literal

import pyarrow.compute as pc
from pydantic import Field

from stages.contracts.artifact import read_table, write_table
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.row_cache import cached_rows, code_fingerprint
from stages.contracts.rows import content_id
from stages.contracts.stage import Input, Memo, Output, Section, stage_main
from stages.contracts.tokens import TOKENS


class ReferenceLogprobsParams(Section):
    """Section `reference_logprobs` of params.yaml."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. bfloat16 halves memory and moves values by about one in a thousand."""
    bf16: bool = False
    """Whether to compute in bfloat16 whatever the type of the weights, as trainings with `bf16: true` do."""
    batch_size: int = Field(16, gt=0)
    """Rows of a forward pass; bounds memory and can change a value's last bits."""
    chunk_size: int = Field(256, gt=0)
    """Positions projected onto the vocabulary at once; bounds memory and can change a value's last bits."""
    token_level: bool = False
    """Whether to keep the log-probability of each token beside the sum."""


def run(
    *, tokens: Input, base_model: Input, reference_logps: Output, memo: Memo, params: ReferenceLogprobsParams
) -> None:
    """Compute the log-probability of every completion under the base model.

    Args:
        tokens: `tokens` artifact.
        base_model: the reference.
        reference_logps: `reference_logps` artifact to write, in the order of `tokens`.
        memo: folder of results per row.
        params: precision and batch shape.

    Raises:
        ContractError: `tokens` is missing or damaged.
        ValueError: the model is missing, isn't the one that was named, or has no finite log-probability for a row.
    """
    import torch
    import transformers

    from stages.models.devices import default_device
    from stages.models.pointer import fingerprint
    from stages.models.row_logps import RowScorer

    rows = read_table(tokens, TOKENS, columns=["row_id", "input_ids", "prompt_length", "spans"])
    lengths = pc.list_value_length(rows["input_ids"]).to_numpy()
    device = default_device()
    print(f"reference_logprobs: {len(rows):,} rows, {lengths.sum():,} tokens, on {device.type}", flush=True)
    results = cached_rows(
        rows,
        RowScorer(base_model, **params.model_dump()),
        memo=memo,
        fingerprint=content_id(
            code_fingerprint("stages.models.row_logps"),
            fingerprint(base_model),
            params.model_dump(),
            [torch.__version__, transformers.__version__, device.type],
        ),
        key_columns=[name for name in rows.column_names if name != "row_id"],
        flush_rows=16 * params.batch_size,
        costs=lengths.tolist(),
        progress="reference_logprobs",
    )
    wrong = rows["row_id"].filter(pc.invert(pc.is_finite(results["logps"])))
    if len(wrong):
        raise ValueError(
            f"{base_model} gives {len(wrong):,} of {len(rows):,} rows no finite log-probability, the first {wrong[0]}: "
            "weights are damaged, or overflow in their type; check the model, and reference_logprobs.dtype"
        )
    write_table(reference_logps, results.add_column(0, "row_id", rows["row_id"]), REFERENCE_LOGPS)


if __name__ == "__main__":
    stage_main(run)
