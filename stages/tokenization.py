"""Stage `tokenization`: token ids of each prompt and completion, cut to the lengths that training can hold.

Rows are encoded whole and remembered, then cut, so that another `max_length` encodes nothing again.
"""

from collections import Counter
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import write_json
from stages.contracts.row_cache import cached_rows, code_fingerprint
from stages.contracts.rows import canonical_json, content_id
from stages.contracts.stage import EXIT_REJECTED, Input, Memo, Output, Section, StageFailure, stage_main
from stages.contracts.tokens import TOKENS
from stages.text.reasons import RejectedRowError
from stages.text.row_encoding import PIECE_ROWS, ROWS_WORTH_PROCESSES, TEXT_COLUMNS, RowEncoder, cut_rows
from stages.text.row_writer import RejectWriter, RowWriter
from stages.text.serving import read_serving
from stages.text.truncation import TruncatedRow, TruncationMode, cut_weights


class TokenizationParams(Section):
    """Section `tokenization` of params.yaml."""

    max_length: int | None = Field(1024, gt=0)
    """Most tokens of a prompt and its completion together, BOS and EOS included. Null sets no limit."""
    max_prompt_length: int | None = Field(None, gt=0)
    """Tokens that a prompt is cut to where it and its completion exceed `max_length`, or always if that is null; a BOS
    in front isn't counted. Null cuts no prompt."""
    max_completion_length: int | None = Field(None, gt=0)
    """Most tokens of a completion, EOS included. Null sets no limit of its own."""
    truncation_mode: TruncationMode = "keep_end"
    """Whether a prompt that is cut keeps its end or its start. Completions keep their start."""
    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of completions that may be rejected, for want of room or otherwise; more of them fail the stage."""


def run(
    *,
    completions: Input,
    base_model: Input,
    tokens: Output,
    rejects: Output,
    metrics: Output,
    memo: Memo,
    params: TokenizationParams,
) -> None:
    """Encode every completion with its prompt and write those that fit.

    Args:
        completions: `completions` artifact; bare prompts in it are counted and left out.
        base_model: `base_model` artifact, for the tokenizer.
        tokens: `tokens` artifact to write, in the order of `completions`.
        rejects: `rejects` artifact to write: rows without room for one token of completion.
        metrics: JSON file to write; completions = tokens + rejects.
        memo: row memo of this stage.
        params: lengths and the end that is cut.

    Raises:
        ContractError: `completions` is missing, damaged, or of another version.
        ValueError: a row has more tokens than the model has positions.
        StageFailure: no row fits, or more than `max_reject_share` of them are rejected.
    """
    from stages.models.pointer import num_positions, tokenizer_fingerprint
    from stages.models.tokenizers import load_tokenizer

    table = read_table(completions, COMPLETIONS)
    rows = table.drop_columns(["messages", "source"]).filter(table["completion"].is_valid())
    text_columns = [*TEXT_COLUMNS, *(["spans"] if "spans" in rows.column_names else [])]
    encoded = cached_rows(
        rows.select(text_columns),
        RowEncoder(load_tokenizer, base_model),
        memo=memo,
        fingerprint=content_id(
            tokenizer_fingerprint(base_model),
            code_fingerprint("stages.text.encoding"),
            [version(package) for package in ("tokenizers", "transformers")],
        ),
        key_columns=text_columns,
        progress="tokenization",
        flush_rows=PIECE_ROWS,
        rows_worth_processes=ROWS_WORTH_PROCESSES,
    )
    counts: Counter[str] = Counter()
    longest = 0
    with RowWriter(tokens, TOKENS) as kept, RejectWriter(rejects) as refused:
        if serving := read_serving(completions, COMPLETIONS):
            kept.set_meta(serving=serving)
        # Where a row stands in `completions`, from 1.
        lines = np.flatnonzero(table["completion"].is_valid().to_numpy()) + 1
        for line, (row, result) in zip(
            lines.tolist(), cut_rows(rows, encoded, **params.model_dump(exclude={"max_reject_share"})), strict=True
        ):
            if isinstance(result, RejectedRowError):
                refused.refuse(result, file=completions.name, line=line, row=canonical_json(row))
                continue
            counts["truncated"] += result.truncated
            counts["truncated_prompts"] += result.is_prompt_cut
            counts["truncated_completions"] += result.is_completion_cut
            counts["num_tokens"] += len(result.input_ids)
            longest = max(longest, len(result.input_ids))
            kept.add(_token_row(row, result))
        if refused.num_rows or counts["truncated"]:
            kept.set_meta(
                losses={
                    "completions": rows.num_rows,
                    "rejected": refused.num_rows,
                    "truncated": counts["truncated"],
                }
            )
    lengths = _lengths(encoded)
    if rows.num_rows and not kept.num_rows:
        raise StageFailure(
            f"0 of {rows.num_rows:,} rows fit max_length={params.max_length}; the longest prompt has "
            f"{lengths['prompt']['longest']:,} tokens, the shortest {lengths['prompt']['shortest']:,}, and a prompt "
            "needs room for a token of completion behind it, so raise tokenization.max_length or lower "
            f"max_prompt_length ({refused.summary()})",
            status=EXIT_REJECTED,
        )
    if refused.num_rows > params.max_reject_share * rows.num_rows:
        raise StageFailure(
            f"{refused.num_rows:,} of {rows.num_rows:,} completions are rejected, more than the share of "
            f"{params.max_reject_share} that tokenization.max_reject_share allows; {refused.summary()}",
            status=EXIT_REJECTED,
        )
    _check_positions(longest, num_positions(base_model), params.max_length)
    found = {
        "completions": rows.num_rows,
        "rows_kept": kept.num_rows,
        "rejects": refused.num_rows,
        "reject_reasons": dict(refused.reasons),
        "prompts_only": table.num_rows - rows.num_rows,
        **{name: counts[name] for name in ("truncated", "truncated_prompts", "truncated_completions", "num_tokens")},
        "share_rejected": refused.num_rows / max(rows.num_rows, 1),
        "share_truncated": counts["truncated"] / max(kept.num_rows, 1),
        "length": lengths,
    }
    write_json(metrics, found)
    _print_counts(found)


def _check_positions(longest: int, positions: int | None, max_length: int | None) -> None:
    if positions is not None and longest > positions:
        raise ValueError(
            f"expected rows of up to {positions:,} tokens, as many as the model has positions, found one of "
            f"{longest:,} (max_length={max_length}), for whose end the model has none; set "
            f"tokenization.max_length: {positions}"
        )


def _token_row(row: dict[str, Any], cut: TruncatedRow) -> dict[str, Any]:
    kept = {name: row[name] for name in ("row_id", "prompt_id", "pair_id", "label", "weight", "split")}
    return {
        **kept,
        "input_ids": cut.input_ids,
        "prompt_length": cut.prompt_length,
        "truncated": cut.truncated,
        "spans": cut.spans,
        "span_weights": cut_weights(row.get("span_weights"), cut.spans),
    }


def _lengths(encoded: pa.Table) -> dict[str, dict[str, int]]:
    """Spread of the lengths before anything is cut, in tokens."""
    prompts = pc.list_value_length(encoded["prompt_ids"]).to_numpy()
    completions = pc.list_value_length(encoded["completion_ids"]).to_numpy()
    names = {"shortest": 0, "median": 0.5, "p95": 0.95, "longest": 1}
    return {
        name: {label: int(np.quantile(values, share, method="higher")) for label, share in names.items()}
        for name, values in (("prompt", prompts), ("completion", completions), ("row", prompts + completions))
        if len(values)
    }


def _print_counts(counts: dict[str, Any]) -> None:
    print(
        f"tokenization: {counts['completions']:,} completions = {counts['rows_kept']:,} kept + "
        f"{counts['rejects']:,} rejects; {counts['truncated']:,} truncated; "
        f"{counts['prompts_only']:,} bare prompts left out"
    )
    if counts["rejects"] or counts["truncated"]:
        print(
            f"  shares: {counts['share_rejected']:.1%} rejected, {counts['share_truncated']:.1%} of the rest truncated"
        )
    for reason, count in sorted(counts["reject_reasons"].items()):
        print(f"  rejected {count:,}: {reason}")
    if "row" in counts["length"]:
        length = counts["length"]["row"]
        print(
            f"  {counts['num_tokens']:,} tokens; rows have a median of {length['median']:,}, the longest "
            f"{length['longest']:,} before truncation"
        )


if __name__ == "__main__":
    stage_main(run)
