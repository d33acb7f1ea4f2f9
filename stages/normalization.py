"""Stage `normalization`: events of feedback as one row per prompt and completion, templated, labelled and split."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from stages.contracts.artifact import read_batches
from stages.contracts.completions import COMPLETIONS
from stages.contracts.feedback_events import FEEDBACK_EVENTS
from stages.contracts.files import write_json
from stages.contracts.ledger import LEDGER
from stages.contracts.stage import EXIT_REJECTED, Input, Output, Section, StageFailure, stage_main
from stages.text.chat_template import DEFAULT_DATE, ChatRenderer, EarlierThoughts, LearnedTurns
from stages.text.events import EventGroups, as_given, feedback_of
from stages.text.normal_form import NormalForm, PlainText, SpecialText
from stages.text.reasons import RejectedRowError
from stages.text.row_writer import RejectWriter, RowWriter
from stages.text.serving import serving_meta
from stages.text.split_groups import SplitGroups, Twins

_SIDES = ("test", "train")
_LARGE_SHARE = 0.5
_ROWS_OF_A_SIDE = 2


class NormalizationParams(Section):
    """Section `normalization` of params.yaml."""

    moved: ClassVar[Mapping[str, str]] = {
        name: f"ingestion.{name}"
        for name in (
            *("source", "columns", "prompt_parts", "layout", "label_threshold", "undesired_threshold", "label_words"),
            *("ignored_labels", "winners", "score", "unrated", "vote_weight", "encoding", "max_row_bytes"),
        )
    }

    test_share: float = Field(0.1, ge=0, lt=1)
    """Share held out for evaluation, by a hash of the conversation, else of the prompt."""
    held_out_from: date | None = None
    """Day (UTC) from which on rows are held out, in place of `test_share`: a policy is measured on what came later. A
    conversation or prompt that was there before stays on its side, and a row without a time is learned from. Null: a
    share of all, whenever they came."""
    twins: Twins = "numbers"
    """Which prompts are one, and so on one side of the split: those that differ in numbers, case and white space; those
    that differ in case and white space, as where numbers are the question ("What is 3 times 4?"); or equal ones."""
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
    """Whether of a completion of several turns all answers of the assistant are learned, or the last one.
    conversation takes all answers of a demonstrated conversation, from the first, for its completion; each makes a row
    of every one, with the prompt that a server sends at that turn, as templates of thinking models need it."""
    turn_decay: float = Field(1.0, gt=0, le=1)
    """What an answer weighs for each one that comes after it in its completion, besides the `weight` that its message
    may have in the log; 0.5 makes the weights of three answers 0.25, 0.5 and 1. Only SFT learns from other weights than
    0 and 1."""
    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of rows that may be rejected; more of them fail the stage."""

    @model_validator(mode="after")
    def _decay_has_several_answers(self) -> Self:
        if self.turn_decay != 1 and self.learned_turns in ("last", "each"):
            raise ValueError(
                f"turn_decay is {self.turn_decay}, and learned_turns: {self.learned_turns} leaves one answer in a "
                "completion; set learned_turns to all or conversation, or leave turn_decay out"
            )
        return self


def run(
    *,
    feedback_events: Input,
    ledger: Input,
    base_model: Input,
    completions: Output,
    rejects: Output,
    metrics: Output,
    params: NormalizationParams,
) -> None:
    """Write the events that count in normal form, all that was refused with the reason, and the counts of both.

    Args:
        feedback_events: artifact, for what people said of what.
        ledger: artifact, for what became of each record of the log.
        base_model: `base_model` artifact, for the tokenizer and its chat template.
        completions: `completions` artifact to write, in the order of the log.
        rejects: `rejects` artifact to write, of what reading the log refused as well.
        metrics: JSON file to write; rows_read = rows_kept + duplicates + rejects, and duplicates = merged + superseded.
        params: split and template.

    Raises:
        ContractError: an input was written under another schema.
        ValueError: no event has the column that `group_by` names, or `chat_template` is no Jinja.
        StageFailure: more than `max_reject_share` of the rows, or all of them, are rejected.
    """
    from stages.models.tokenizers import load_tokenizer, stop_tokens

    tokenizer = load_tokenizer(base_model)
    listed = stop_tokens(base_model, tokenizer)
    normal_form = normal_form_of(params, tokenizer, stop_tokens=listed)
    renderer = normal_form.renderer
    renderer.check_syntax()
    with RowWriter(completions, COMPLETIONS) as kept, RejectWriter(rejects) as refused:
        day = params.held_out_from
        start = None if day is None else datetime.combine(day, time(), UTC).timestamp()
        split = SplitGroups(test_share=params.test_share, twins=params.twins, held_out_from=start)
        groups = EventGroups(params.group_by, split)
        entries = _entries(feedback_events, ledger)
        counts = _write_rows(entries, normal_form, groups, kept=kept, refused=refused)
        counts["understood"] = renderer.sentences()
        serving = serving_meta(
            template=params.chat_template,
            arguments=params.template_arguments,
            ends=renderer.ends(),
            listed=[*listed, tokenizer.eos_token],
        )
        kept.set_meta(**serving)

    num_read, num_rejects = counts["rows_read"], counts["rejects"]
    if counts["rows_kept"] == 0:
        raise StageFailure(f"none of {num_read:,} rows can be used; {refused.summary()}", status=EXIT_REJECTED)
    # That nobody voted on most answers is as it should be, and no fault of theirs.
    num_unrated = counts["reject_reasons"].get("unrated", 0)
    num_rejects, num_read = num_rejects - num_unrated, num_read - num_unrated
    if num_rejects > params.max_reject_share * num_read:
        raise StageFailure(
            f"{num_rejects:,} of {num_read:,} rows are rejected, more than the share of {params.max_reject_share} "
            f"that normalization.max_reject_share allows; {refused.summary()}",
            status=EXIT_REJECTED,
        )
    if day is not None and len(counts["splits"]) < len(_SIDES):
        raise StageFailure(
            f"normalization.held_out_from is {day}: expected rows before it and from then on, found them on one side "
            f"alone ({', '.join(counts['splits'])}); rows without a time are learned from",
            status=EXIT_REJECTED,
        )
    counts["warnings"] = _empty_sides(counts, params.test_share) if day is None else []
    write_json(metrics, counts)
    _print_counts(counts)


def _empty_sides(counts: dict[str, Any], test_share: float) -> list[str]:
    """What to tell a reader of a split that leaves nothing to learn from, or nothing to measure on."""
    kept, groups = counts["rows_kept"], counts["split_groups"]
    expected = {"train": (1 - test_share) * kept, "test": test_share * kept}
    why = "they are too few groups to split"
    if groups["largest_share"] > _LARGE_SHARE:
        why = (
            f"one group holds {groups['largest_share']:.0%} of them, whose prompts are one by normalization.twins, or "
            "which have one value of group_by: set twins: case (or exact) if prompts that differ in numbers are "
            "different questions, or name another group_by"
        )
    return [
        f"expected about {expected[side]:,.0f} of {kept:,} rows {what}, found none, and {stops} will stop; {why}"
        for side, what, stops in (("train", "to learn from", "training"), ("test", "held out", "evaluation"))
        # Of a few rows a side may have none by chance.
        if not counts["splits"].get(side, 0) and expected[side] >= _ROWS_OF_A_SIDE
    ]


def normal_form_of(params: NormalizationParams, tokenizer: Any, *, stop_tokens: list[str]) -> NormalForm:
    """What renders rows as the section says.

    Args:
        params: the section.
        tokenizer: of the model, with its chat template.
        stop_tokens: tokens at which the model's generation stops.
    """
    renderer = ChatRenderer(
        tokenizer,
        template=params.chat_template,
        today=params.template_date,
        arguments=params.template_arguments,
        stop_tokens=stop_tokens,
        earlier_thoughts=params.earlier_thoughts,
        fold_system=params.fold_system,
        join_turns=params.join_turns,
        learned_turns=params.learned_turns,
        turn_decay=params.turn_decay,
    )
    return NormalForm(
        tokenizer,
        renderer,
        plain_text=params.plain_text,
        special_tokens=params.special_tokens,
        test_share=params.test_share,
        has_template=params.chat_template is not None,
    )


Entry = tuple[dict[str, Any], dict[str, Any] | None]


def _entries(feedback_events: Input, ledger: Input) -> Iterator[Entry]:
    """Each entry of the ledger with its event, if it has one."""
    events = (event for batch in read_batches(feedback_events, FEEDBACK_EVENTS) for event in batch.to_pylist())
    for batch in read_batches(ledger, LEDGER):
        for entry in batch.to_pylist():
            yield entry, None if entry["event"] is None else next(events)


def _write_rows(
    entries: Iterator[Entry], normal_form: NormalForm, groups: EventGroups, *, kept: RowWriter, refused: RejectWriter
) -> dict[str, Any]:
    import numpy as np

    sides: dict[str, Counter[str]] = {name: Counter() for name in ("layouts", "labels", "splits")}
    fates: Counter[str] = Counter()
    num_incomplete = 0
    prompts = array("Q")
    for entry, event in entries:
        place = {"file": entry["file"], "line": entry["line"]}
        fates[entry["fate"]] += 1
        if entry["reason"] is not None:
            refused.refuse(RejectedRowError(entry["reason"], entry["detail"]), row=entry["row"], **place)
        if entry["fate"] != "used" or event is None:
            continue
        feedback = feedback_of(event)
        try:
            split = groups.side_of(event, feedback)
            rows = [row for part in normal_form.settled(feedback) for row in normal_form.rows(part, split=split)]
        except RejectedRowError as error:
            refused.refuse(error, row=as_given(event), **place)
            continue
        fates["kept"] += 1
        sides["layouts"][feedback.layout] += 1
        for row in rows:
            kept.add(row)
            sides["labels"][{True: "desired", False: "undesired", None: "none"}[row["label"]]] += 1
            sides["splits"][row["split"]] += 1
            num_incomplete += not row["is_complete"]
            prompts.append(int(row["prompt_id"][:16], 16))
    groups.check()
    return {
        "rows_read": fates["kept"] + fates["merged"] + fates["superseded"] + refused.num_rows,
        "rows_kept": fates["kept"],
        "duplicates": fates["merged"] + fates["superseded"],
        "merged": fates["merged"],
        "superseded": fates["superseded"],
        "rejects": refused.num_rows,
        "reject_reasons": dict(refused.reasons),
        "completions": kept.num_rows - sides["layouts"]["prompts"],
        "incomplete": num_incomplete,
        "prompts": len(np.unique(np.frombuffer(prompts, np.uint64))) if prompts else 0,
        "plain_text": normal_form.plain_text,
        **dict(normal_form.renderer.said),
        "split_groups": groups.groups.counts(),
        **{name: dict(counts) for name, counts in sides.items()},
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
    if torn := counts["split_groups"]["torn_by_prompt"]["groups"]:
        rows = counts["split_groups"]["torn_by_prompt"]["rows"]
        print(f"  a split by exact prompt would have had {torn:,} groups of {rows:,} rows on both sides")
    for sentence in counts["understood"]:
        print(f"  {sentence}")
    for sentence in counts["warnings"]:
        print(f"  WARNING: {sentence}")
    if counts["split_groups"]["largest_share"] > _LARGE_SHARE and counts["rows_kept"] > 1 and not counts["warnings"]:
        print(
            "  one group holds more than half of the rows, all on one side, so the split is hardly one: prompts that "
            "are one by normalization.twins, or a value of group_by"
        )


if __name__ == "__main__":
    stage_main(run)
