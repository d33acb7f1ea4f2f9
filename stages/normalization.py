"""Stage `normalization`: whatever the log looks like, one row per prompt and completion.

The log is read twice: first to count the votes on each completion, then to write the row that stands for them.
"""

from collections import Counter
from datetime import date
from typing import Any, Self

from pydantic import Field, model_validator

from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import write_json
from stages.contracts.stage import EXIT_REJECTED, Input, Output, Section, StageFailure, stage_main
from stages.text.chat_template import DEFAULT_DATE, ChatRenderer, EarlierThoughts
from stages.text.duplicates import ballot_of
from stages.text.feedback_log import FeedbackLog
from stages.text.layouts import Column, Layout
from stages.text.log_files import MAX_ROW_BYTES
from stages.text.log_sources import open_log
from stages.text.normal_form import NormalForm, PlainText, SpecialText
from stages.text.reasons import RejectedRowError
from stages.text.row_writer import RejectWriter, RowWriter
from stages.text.serving import serving_meta


class NormalizationParams(Section):
    """Section `normalization` of params.yaml."""

    source: str | None = None
    """What to read: null reads all of `inputs.feedback`; or a pattern of files below that folder ("2025/*.jsonl"), an
    fsspec URL ("s3://bucket/log/*.parquet"), or a data set of the hub ("hf:org/name@revision:split")."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """By our name of a column, the log's name for it: {prompt: question, label: vote}."""
    layout: Layout | None = None
    """What every row is: unpaired, pairs, demonstrations or prompts. Null reads it off the columns of each row."""
    label_threshold: float | None = None
    """Smallest rating that counts as desired, where votes are ratings. Null takes 1 as desired, 0 and -1 as not."""
    ignored_labels: list[float | str] = Field(default_factory=list)
    """Votes that say neither, such as the middle of a scale; their rows are rejected."""
    test_share: float = Field(0.1, ge=0, lt=1)
    """Share of prompts held out for evaluation, by a hash of the prompt."""
    plain_text: PlainText = "as_is"
    """Whether a prompt of plain text goes to the model as it is, or through the chat template as a user's turn."""
    special_tokens: SpecialText = "refuse"
    """Whether rows that hold control tokens of the model as text are rejected, or kept, as for templated logs."""
    chat_template: str | None = None
    """Jinja text in place of the tokenizer's own chat template."""
    template_date: date = DEFAULT_DATE
    """Day given to templates that write today's date."""
    template_arguments: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further variables for the template, such as {enable_thinking: false}."""
    earlier_thoughts: EarlierThoughts = "refuse"
    """What becomes of a prompt whose template leaves out what the assistant thought in earlier turns, as those of
    thinking models do: it is rejected, or taken as_served, without those thoughts."""
    max_row_bytes: int = Field(MAX_ROW_BYTES, gt=0)
    """Longest row; a longer one is rejected unread."""
    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of rows that may be rejected; more of them fail the stage."""

    @model_validator(mode="after")
    def _names_columns_once(self) -> Self:
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError(f"each column of the log under one name, not {self.columns}")
        return self


def run(
    *,
    feedback: Input,
    base_model: Input,
    completions: Output,
    rejects: Output,
    metrics: Output,
    params: NormalizationParams,
) -> None:
    """Read the log and write its usable rows in normal form, the others with the reason, and the counts of both.

    Args:
        feedback: file or folder of the log.
        base_model: `base_model` artifact, for the tokenizer and its chat template.
        completions: `completions` artifact to write, in the order of the log.
        rejects: `rejects` artifact to write.
        metrics: JSON file to write; rows_read = rows_kept + duplicates + rejects.
        params: source, layout, labels, split and template.

    Raises:
        ValueError: there is no log, a file is damaged, or the votes can be read in two ways.
        StageFailure: more than `max_reject_share` of the rows, or all of them, are rejected.
    """
    from stages.models.tokenizers import load_tokenizer, stop_tokens

    tokenizer = load_tokenizer(base_model)
    listed = stop_tokens(base_model, tokenizer)
    renderer = ChatRenderer(
        tokenizer,
        template=params.chat_template,
        today=params.template_date,
        arguments=params.template_arguments,
        stop_tokens=listed,
        earlier_thoughts=params.earlier_thoughts,
    )
    normal_form = NormalForm(
        tokenizer,
        renderer,
        plain_text=params.plain_text,
        special_tokens=params.special_tokens,
        test_share=params.test_share,
    )
    with (
        open_log(feedback, params.source) as files,
        RowWriter(completions, COMPLETIONS) as kept,
        RejectWriter(rejects) as refused,
    ):
        log = FeedbackLog(
            files,
            columns=params.columns,
            layout=params.layout,
            label_threshold=params.label_threshold,
            ignored_labels=params.ignored_labels,
            max_row_bytes=params.max_row_bytes,
        )
        counts = _write_rows(log, normal_form, kept=kept, refused=refused)
        serving = serving_meta(
            template=params.chat_template,
            arguments=params.template_arguments,
            turn_end=renderer.turn_end(),
            listed=[*listed, tokenizer.eos_token],
        )
        kept.set_meta(**serving)

    num_read, num_rejects = counts["rows_read"], counts["rejects"]
    if num_read == 0:
        raise ValueError(f"{params.source or feedback}: expected rows of feedback, found none; check the path")
    if counts["rows_kept"] == 0:
        raise StageFailure(f"none of {num_read:,} rows can be used; {refused.summary()}", status=EXIT_REJECTED)
    if num_rejects > params.max_reject_share * num_read:
        raise StageFailure(
            f"{num_rejects:,} of {num_read:,} rows are rejected, more than the share of {params.max_reject_share} "
            f"that normalization.max_reject_share allows; {refused.summary()}",
            status=EXIT_REJECTED,
        )
    write_json(metrics, counts)
    _print_counts(counts)


def _write_rows(log: FeedbackLog, normal_form: NormalForm, *, kept: RowWriter, refused: RejectWriter) -> dict[str, Any]:
    ballots = log.count_votes()
    sides: dict[str, Counter[str]] = {name: Counter() for name in ("layouts", "labels", "splits", "files")}
    num_read = num_duplicates = num_incomplete = 0
    prompts: set[str] = set()
    for index, (logged, feedback) in enumerate(log.rows(progress="normalization")):
        num_read += 1
        sides["files"][logged.file] += 1
        try:
            if isinstance(feedback, RejectedRowError):
                raise feedback
            if not ballots.is_first(index, ballot_of(feedback)):
                num_duplicates += 1
                continue
            rows = normal_form.rows(feedback)
        except RejectedRowError as error:
            refused.refuse(error, file=logged.file, line=logged.line, row=logged.text)
            continue
        sides["layouts"][feedback.layout] += 1
        for row in rows:
            kept.add(row)
            sides["labels"][{True: "desired", False: "undesired", None: "none"}[row["label"]]] += 1
            sides["splits"][row["split"]] += 1
            num_incomplete += not row["is_complete"]
            prompts.add(row["prompt_id"])
    decided, tied = ballots.num_contradictory()
    return {
        "rows_read": num_read,
        "rows_kept": num_read - num_duplicates - refused.num_rows,
        "duplicates": num_duplicates,
        "rejects": refused.num_rows,
        "reject_reasons": dict(refused.reasons),
        "contradictory": {"decided": decided, "tied": tied},
        "completions": kept.num_rows - sides["layouts"]["prompts"],
        "incomplete": num_incomplete,
        "prompts": len(prompts),
        **dict(normal_form.renderer.said),
        **{name: dict(counts) for name, counts in sides.items()},
    }


def _print_counts(counts: dict[str, Any]) -> None:
    print(
        f"normalization: {counts['rows_read']:,} rows read = {counts['rows_kept']:,} kept + "
        f"{counts['duplicates']:,} duplicates + {counts['rejects']:,} rejects"
    )
    for reason, count in sorted(counts["reject_reasons"].items()):
        print(f"  rejected {count:,}: {reason}")
    print(f"  {counts['completions']:,} completions of {counts['prompts']:,} prompts; a pair gives two")
    for name in ("layouts", "labels", "splits"):
        print(f"  {name}: {', '.join(f'{count:,} {key}' for key, count in sorted(counts[name].items()))}")


if __name__ == "__main__":
    stage_main(run)
