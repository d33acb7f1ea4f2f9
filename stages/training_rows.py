"""Stage `training_rows`: what one method learns from, out of what the stages before computed.

    dvc repro bco_rows

The artifact holds places and numbers and no text, so that a filter, a mixture or a curriculum is a stage that reads
one and writes another.
"""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Self

from pydantic import Field, model_validator

from stages.contracts.stage import EXIT_REJECTED, Input, Inputs, Output, Section, StageFailure, stage_main
from stages.contracts.training_rows import Kind

NEEDED: dict[str, tuple[str, ...]] = {
    "labelled": ("tokens", "reference_logps"),
    "pairs": ("tokens",),
    "demonstrations": ("tokens",),
    "prompts": ("completions",),
    "image_prompts": ("image_prompts",),
}
"""What each kind is made of; the first is what its rows are places in."""
OPTIONAL = {"labelled": ("density_ratios", "mismatched_reference_logps"), "pairs": ("reference_logps",)}


LOST = ("pairs_with_prompts_cut_differently",)
"""Counts of rows that could have been learned from, and were lost on the way."""


class RowsParams(Section):
    """A section below `rows` of params.yaml."""

    margin_column: str | None = None
    """Column of the log that says by how much a chosen completion is better, taken as margin of the loss; null asks
    for no margin."""
    margin_values: dict[str, float] | None = None
    """Margin that each text of that column stands for, such as {slight: 0.3, clear: 1.0}; null takes its numbers."""

    origin_column: str | None = None
    """Column of the log that says which model gave an answer, which its row is compared with; null compares all rows
    with the model that training starts from."""
    rejected_origin_column: str | None = None
    """The same of a pair's rejected answer; null where one model gave both."""
    origin_references: dict[str, str] | None = None
    """Name in `references` that each value of that column stands for, such as {gpt-small-v1: base, v2: sft}; null takes
    values as names."""

    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of the pairs that may be left out, as truncation cut their two prompts differently; more fail the stage."""

    @model_validator(mode="after")
    def _values_have_a_column(self) -> Self:
        if self.margin_values is not None and self.margin_column is None:
            raise ValueError("margin_values is set and margin_column isn't; name the column")
        if (self.rejected_origin_column or self.origin_references) and self.origin_column is None:
            raise ValueError(
                "rejected_origin_column or origin_references is set and origin_column isn't; name the column"
            )
        return self


def run(
    *,
    kind: Kind,
    tokens: Input | None = None,
    reference_logps: Input | None = None,
    origin_reference_logps: Inputs = (),
    density_ratios: Input | None = None,
    mismatched_reference_logps: Input | None = None,
    completions: Input | None = None,
    image_prompts: Input | None = None,
    rows: Output,
    params: RowsParams | None = None,
) -> None:
    """Write the rows of both splits.

    Args:
        kind: what a row is: a `labelled` completion, one of `pairs`, one of `demonstrations` (completions that people
            liked among them), one of `prompts` or of `image_prompts`.
        tokens: `tokens` artifact, for all kinds but prompts.
        reference_logps: `reference_logps` artifact, in the order of `tokens`; for labelled rows and pairs.
        origin_reference_logps: the same under other models that gave answers; with `origin_column`.
        density_ratios: `density_ratios` artifact; None weighs all prompts alike.
        mismatched_reference_logps: `reference_logps` artifact of the mismatched rows, which KTO learns from.
        completions: `completions` artifact, for prompts, for the margins of pairs, and for the origin of answers.
        image_prompts: `image_prompts` artifact, for that kind.
        rows: `training_rows` artifact to write.
        params: margins of pairs, origins of answers, and how many rows may be lost; None asks for no margins and one
            reference.

    Raises:
        ContractError: an artifact is missing or damaged, or two aren't of the same rows.
        ValueError: there is nothing to learn from, a kind lacks what it is made of, a pair has no margin, or an answer
            no reference.
        StageFailure: more than `max_reject_share` of the pairs are left out.
    """
    from stages.contracts.completions import COMPLETIONS
    from stages.contracts.image_prompts import IMAGE_PROMPTS
    from stages.rows.demonstrations import demonstration_rows
    from stages.rows.labelled import labelled_rows
    from stages.rows.origins import Origins
    from stages.rows.pairs import Margins, pair_rows
    from stages.rows.prompts import prompt_rows
    from stages.rows.reading import write_rows

    given = {
        "tokens": tokens,
        "reference_logps": reference_logps,
        "density_ratios": density_ratios,
        "mismatched_reference_logps": mismatched_reference_logps,
        "completions": completions,
        "image_prompts": image_prompts,
    }
    read = {name: path for name, path in given.items() if path is not None}
    params = params or RowsParams()
    _check(kind, read, params, has_origins=bool(origin_reference_logps))
    completions = read.pop("completions", None) if kind in OPTIONAL else None
    origins = margins = None
    if params.origin_column is not None and completions is not None:
        names = (params.rejected_origin_column, params.origin_references)
        origins = Origins(completions, origin_reference_logps, params.origin_column, *names)
    if params.margin_column is not None and completions is not None:
        margins = Margins(completions, params.margin_column, params.margin_values)
    if kind == "labelled":
        found = labelled_rows(**read, origins=origins)
    elif kind == "pairs":
        found = pair_rows(**read, margins=margins, origins=origins)
    elif kind == "demonstrations":
        found = demonstration_rows(**read)
    else:
        found = prompt_rows(read[NEEDED[kind][0]], COMPLETIONS if kind == "prompts" else IMAGE_PROMPTS)
    for split, counts in found.counts.items():
        print(f"{kind}, {split}: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    lost = sum(counts.get(name, 0) for counts in found.counts.values() for name in LOST)
    if lost > params.max_reject_share * (len(found.table) + lost):
        raise StageFailure(
            f"{lost:,} of {len(found.table) + lost:,} pairs are left out, as their prompts were cut differently, more "
            f"than the share of {params.max_reject_share} that rows.METHOD.max_reject_share allows; raise "
            "tokenization.max_length, or set max_prompt_length, by which both are cut alike",
            status=EXIT_REJECTED,
        )
    found = found._replace(origins=tuple(path.name for path in origin_reference_logps))
    write_rows(rows, found, kind=kind, source=read[NEEDED[kind][0]])


def _check(kind: Kind, read: Collection[str], params: RowsParams, *, has_origins: bool) -> None:
    """Raise ValueError if a kind lacks what it is made of, or is given what it doesn't read."""
    if kind not in NEEDED:
        near = get_close_matches(kind, NEEDED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected --kind as one of {', '.join(NEEDED)}, found {kind!r}{hint}")
    if params.margin_column is not None and kind != "pairs":
        raise ValueError(f"margin_column is of pairs, and --kind is {kind}; leave it out")
    if (params.origin_column is not None) != has_origins or (has_origins and "reference_logps" not in read):
        raise ValueError(
            "expected origin_column with --reference-logps and --origin-reference-logps, found "
            f"{'no ' * (not has_origins)}--origin-reference-logps and origin_column {params.origin_column}; they go "
            "together"
        )
    reads_log = params.margin_column is not None or params.origin_column is not None
    needed = {*NEEDED[kind], *(["completions"] if reads_log else [])}
    problems = [f"needs --{name}, found none" for name in sorted(needed.difference(read))]
    problems += [f"reads no --{name}, found one" for name in sorted(set(read) - needed - set(OPTIONAL.get(kind, ())))]
    if problems:
        raise ValueError(f"--kind {kind} {'; '.join(problems).replace('_', '-')}; mend its entry in dvc.yaml")


if __name__ == "__main__":
    stage_main(run)
