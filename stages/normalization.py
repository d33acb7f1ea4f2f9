"""Stage `normalization`: whatever the log looks like, one row per prompt and completion.

The log is read several times: to find out what its columns are, to join votes with answers where they stand apart, to
count the votes on each completion, and to write the row that stands for them. What nothing reads is counted and said;
what could change labels, prompts or answers stops the stage and names the setting that decides.
"""

import difflib
from collections import Counter
from datetime import date
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import write_json
from stages.contracts.stage import EXIT_REJECTED, Input, Output, Section, StageFailure, stage_main
from stages.text.chat_template import DEFAULT_DATE, ChatRenderer, EarlierThoughts, LearnedTurns
from stages.text.columns import NONE, Place, Settings, value_at
from stages.text.duplicates import ballot_of
from stages.text.feedback_log import Event, FeedbackLog, Unrated, VoteWeight
from stages.text.layouts import COLUMNS, EVENT_COLUMNS, Feedback, Layout
from stages.text.log_files import MAX_ROW_BYTES
from stages.text.log_sources import open_log
from stages.text.normal_form import NormalForm, PlainText, SpecialText
from stages.text.reasons import RejectedRowError
from stages.text.row_writer import RejectWriter, RowWriter
from stages.text.serving import serving_meta
from stages.text.split_groups import SplitGroups
from stages.text.votes import Meaning, VoteWords, is_missing


class NormalizationParams(Section):
    """Section `normalization` of params.yaml."""

    source: str | None = None
    """What to read: null reads all of `inputs.feedback`; or a pattern of files below that folder ("2025/*.jsonl"), an
    fsspec URL ("s3://bucket/log/*.parquet"), or a data set of the hub ("hf:org/name@revision:split")."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """By our name of a column, the log's name for it: {prompt: question, label: vote}; dots lead into objects, as in
    {label: data.rating}. {NAME: none} says of a column of the log that nothing is to read it, on purpose."""
    prompt_parts: list[str] = Field(default_factory=list)
    """Columns of text that make up the prompt together, in order, with an empty line between: [context, question]."""
    layout: Layout | None = None
    """What every row is: unpaired, pairs, demonstrations or prompts. Null reads it off the columns of each row."""
    label_threshold: float | None = None
    """Smallest rating that counts as desired, where votes are ratings. Null takes 1 as desired, 0 and -1 as not, and
    refuses a log with other numbers."""
    undesired_threshold: float | None = None
    """Largest rating that counts as undesired; ratings between the two say neither. Null: all below label_threshold."""
    label_words: dict[str, Meaning] = Field(default_factory=dict)
    """What votes mean that aren't known words: {ok: desired, meh: none, "2": undesired}."""
    ignored_labels: list[float | str] = Field(default_factory=list)
    """Votes that say neither, such as the middle of a scale; their rows are rejected."""
    winners: dict[str, Place] = Field(default_factory=dict)
    """Of two answers and a column that says which is better, what its words mean: {gpt: first, ours: second}."""
    score: str | None = None
    """Name of the score that is the vote, where a log holds several (Langfuse, LangSmith)."""
    unrated: Unrated = "refuse"
    """Whether answers that nobody voted on, in a log of votes, are rejected or taken as demonstrations."""
    vote_weight: VoteWeight = "as_given"
    """What a row weighs that several votes stand behind: as_given adds up the weights and numbers of votes that the
    log gives (30 down outweigh 2 up by 28), and leaves 1 where it gives none; counted gives each vote a weight of 1."""
    test_share: float = Field(0.1, ge=0, lt=1)
    """Share held out for evaluation, by a hash of the conversation, else of the prompt. Prompts that differ in case,
    white space or numbers only are on one side."""
    group_by: str | None = None
    """Column of the log whose values are held out whole, such as a rater. Null: the conversation, else the prompt."""
    plain_text: PlainText = "auto"
    """Whether a prompt of plain text goes to the model as it is, or through the chat template as a user's turn. auto
    takes the template where the model has one."""
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
    fold_system: bool = False
    """Whether a system text that the template refuses or leaves out is said in the user's first turn instead of
    costing the row; your server has to do the same."""
    join_turns: bool = False
    """Whether turns of the user in a row that the template refuses become one turn, as above."""
    learned_turns: LearnedTurns = "all"
    """Whether of a completion of several turns all answers of the assistant are learned, or the last one."""
    encoding: str | None = None
    """Encoding of text files, such as cp1252. Null: UTF-8, or UTF-16 where a file is written in it."""
    max_row_bytes: int = Field(MAX_ROW_BYTES, gt=0)
    """Longest row; a longer one is rejected unread."""
    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of rows that may be rejected; more of them fail the stage."""

    @model_validator(mode="after")
    def _names_columns_once(self) -> Self:
        named = {name: path for name, path in self.columns.items() if path not in (None, NONE)}
        if len(set(named.values())) < len(named):
            raise ValueError(f"each column of the log under one name, not {self.columns}")
        known = (*COLUMNS, *EVENT_COLUMNS)
        for name in named:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}" if near else f"expected one of {', '.join(known)}"
                raise ValueError(f"columns: {name} is no name of ours; {hint}")
        return self

    @model_validator(mode="after")
    def _orders_thresholds(self) -> Self:
        low, high = self.undesired_threshold, self.label_threshold
        if low is not None and (high is None or low >= high):
            raise ValueError(f"undesired_threshold: expected less than label_threshold {high}, found {low}")
        return self

    def settings(self) -> Settings:
        """What is said about columns and votes."""
        spelling = VoteWords(self.label_threshold, self.undesired_threshold, self.ignored_labels, self.label_words)
        return Settings(self.columns, self.prompt_parts, self.winners, spelling)


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
        metrics: JSON file to write; rows_read = rows_kept + duplicates + rejects, and duplicates = merged + superseded.
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
        fold_system=params.fold_system,
        join_turns=params.join_turns,
        learned_turns=params.learned_turns,
    )
    normal_form = NormalForm(
        tokenizer,
        renderer,
        plain_text=params.plain_text,
        special_tokens=params.special_tokens,
        test_share=params.test_share,
        has_template=params.chat_template is not None,
    )
    with (
        open_log(feedback, params.source) as found,
        RowWriter(completions, COMPLETIONS) as kept,
        RejectWriter(rejects) as refused,
    ):
        log = FeedbackLog(
            found.files,
            params.settings(),
            layout=params.layout,
            unrated=params.unrated,
            score=params.score,
            vote_weight=params.vote_weight,
            max_row_bytes=params.max_row_bytes,
            encoding=params.encoding,
        )
        log.count_votes()
        groups = SplitGroups(test_share=params.test_share)
        counts = _write_rows(log, normal_form, groups, group_by=params.group_by, kept=kept, refused=refused)
        counts |= _unread(log, found.unread, plain_text=normal_form.plain_text)
        counts["understood"] += renderer.sentences()
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


def _write_rows(
    log: FeedbackLog,
    normal_form: NormalForm,
    groups: SplitGroups,
    *,
    group_by: str | None,
    kept: RowWriter,
    refused: RejectWriter,
) -> dict[str, Any]:
    sides: dict[str, Counter[str]] = {name: Counter() for name in ("layouts", "labels", "splits", "files")}
    fates: Counter[str] = Counter()
    num_incomplete = 0
    prompts: set[str] = set()
    for logged, events in log.rows(progress="normalization"):
        sides["files"][logged.file] += len(events)
        for event in events:
            fates["read"] += 1
            try:
                fate, rows = _rows_of(event, log, normal_form, groups, group_by)
            except RejectedRowError as error:
                refused.refuse(error, file=logged.file, line=logged.line, row=logged.text)
                continue
            fates[fate] += 1
            if rows and isinstance(event.feedback, Feedback):
                sides["layouts"][event.feedback.layout] += 1
            for row in rows:
                kept.add(row)
                sides["labels"][{True: "desired", False: "undesired", None: "none"}[row["label"]]] += 1
                sides["splits"][row["split"]] += 1
                num_incomplete += not row["is_complete"]
                prompts.add(row["prompt_id"])
    decided, tied = log.ballots.num_contradictory()
    return {
        "rows_read": fates["read"],
        "rows_kept": fates["kept"],
        "duplicates": fates["merged"] + fates["superseded"],
        "merged": fates["merged"],
        "superseded": fates["superseded"],
        "rejects": refused.num_rows,
        "reject_reasons": dict(refused.reasons),
        "contradictory": {"decided": decided, "tied": tied},
        "completions": kept.num_rows - sides["layouts"]["prompts"],
        "incomplete": num_incomplete,
        "prompts": len(prompts),
        **dict(normal_form.renderer.said),
        "split_groups": groups.counts(),
        **{name: dict(counts) for name, counts in sides.items()},
    }


Fate = Literal["kept", "merged", "superseded"]


def _rows_of(
    event: Event, log: FeedbackLog, normal_form: NormalForm, groups: SplitGroups, group_by: str | None
) -> tuple[Fate, list[dict[str, Any]]]:
    """What becomes of an event, and the rows that it gives.

    Raises:
        RejectedRowError: it can't be used.
    """
    fate = log.ballots.fate(event.number)
    if fate == "superseded":
        return "superseded", []
    if fate == "retracted":
        raise RejectedRowError("retracted", "the rater took the vote back")
    if fate == "repeated":
        return "merged", []
    if isinstance(event.feedback, RejectedRowError):
        raise event.feedback
    if not log.ballots.is_first(event.number, ballot_of(event.feedback)):
        return "merged", []
    feedback = log.weigh(event.feedback)
    group = event.conversation
    if group_by is not None:
        value = value_at(event.row, group_by)
        group = None if is_missing(value) else f"{group_by} {value}"
    side = groups.side_of(feedback.prompt, feedback.prompt_id(), group)
    return "kept", normal_form.rows(feedback, split=side)


def _unread(log: FeedbackLog, files: dict[str, str], *, plain_text: PlainText) -> dict[str, Any]:
    """What was understood of the log without a setting, and what of it nothing reads."""
    return {
        "records": dict(log.ledger.records),
        "formats": dict(log.ledger.formats),
        "understood": list(log.shape.said),
        "plain_text": plain_text,
        "unread": {
            "files": files,
            "columns": dict(log.shape.unread),
            "labels": dict(log.ledger.unknown_labels),
            "scores": dict(log.ledger.other_scores),
        },
        "reading": {name: tally.as_json() for name, tally in log.tallies.items()},
    }


def _print_counts(counts: dict[str, Any]) -> None:
    print(
        f"normalization: {counts['rows_read']:,} rows read = {counts['rows_kept']:,} kept + "
        f"{counts['duplicates']:,} duplicates + {counts['rejects']:,} rejects"
    )
    if counts["superseded"]:
        print(f"  of the duplicates {counts['superseded']:,} are votes that their rater changed later")
    for reason, count in sorted(counts["reject_reasons"].items()):
        print(f"  rejected {count:,}: {reason}")
    print(f"  {counts['completions']:,} completions of {counts['prompts']:,} prompts; a pair gives two")
    for name in ("layouts", "labels", "splits"):
        print(f"  {name}: {', '.join(f'{count:,} {key}' for key, count in sorted(counts[name].items()))}")
    for name, tally in counts["reading"].items():
        print(f"  {name}: {tally['rows']:,} rows of {tally['form']}")
    for sentence in counts["understood"]:
        print(f"  {sentence}")
    _print_unread(counts["unread"])
    if counts["split_groups"]["largest_share"] > 0.5 and counts["split_groups"]["groups"] > 1:
        print("  one group holds more than half of the rows, so the split is hardly one; see normalization.group_by")


def _print_unread(unread: dict[str, Any]) -> None:
    for name, why in unread["files"].items():
        print(f"  not read: the file {name}, {why}")
    if unread["columns"]:
        print(f"  read by nothing and kept as source: {', '.join(sorted(unread['columns']))}")
    if unread["labels"]:
        listed = ", ".join(f"{word} ({count:,})" for word, count in sorted(unread["labels"].items()))
        print(f"  no known vote: {listed}; normalization.label_words says what these mean")
    for name, count in unread["scores"].items():
        print(f"  {count:,} scores {name} aren't read")


if __name__ == "__main__":
    stage_main(run)
