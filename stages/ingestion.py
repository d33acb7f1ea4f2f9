"""Stage `ingestion`: whatever the log looks like, one row per vote, answer or demonstration, and which of them count.

The log is read several times: to find out what its columns are, to join votes with answers where they stand apart, and
to read the events. What nothing reads is counted and said; what could change labels, prompts or answers stops the stage
and names the setting that decides. No model is needed.
"""

import difflib
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from stages.contracts.files import write_json
from stages.contracts.stage import EXIT_REJECTED, Input, Output, Scratch, Section, StageFailure, stage_main
from stages.text.columns import NONE, Place, Settings
from stages.text.event_store import EventStore
from stages.text.event_writer import EventCounts, write_events
from stages.text.feedback_log import FeedbackLog, PairsFrom, Transcripts, Unrated, VoteWeight
from stages.text.layouts import COLUMNS, EVENT_COLUMNS, Layout
from stages.text.log_files import MAX_ROW_BYTES
from stages.text.log_sources import open_log
from stages.text.times import DateOrder
from stages.text.votes import Meaning, VoteWords, word_of


class IngestionParams(Section):
    """Section `ingestion` of params.yaml."""

    source: str | None = None
    """What to read: null reads all of `inputs.feedback`; or a pattern of files below that folder ("2025/*.jsonl"), an
    fsspec URL ("s3://bucket/log/*.parquet"), or a data set of the hub ("hf:org/name@revision:split")."""
    format: str | None = None
    """What records are: rows, messages, openai, langfuse and other names of stages/text/formats.py, or
    package.module:function, which is given a record and gives a list of events by our names of columns. Null recognises
    each record by its shape."""
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
    pairs_from: list[PairsFrom] = Field(default_factory=list)
    """What makes pairs besides comparisons: `corrections`, which somebody wrote in place of an answer, are better than
    it; of `regenerations`, answers to one message in a tree or table of them, the one that was gone on from, or else
    the last, is better than the others, unless a vote says otherwise."""
    vote_weight: VoteWeight = "as_given"
    """What a row weighs that several votes stand behind: as_given adds up the weights and numbers of votes that the
    log gives (30 down outweigh 2 up by 28), and leaves 1 where it gives none; counted gives each vote a weight of 1."""
    rater_cap: float | None = Field(None, gt=0)
    """What all votes of one rater in the log weigh together, at most; of a rater with more each weighs less. Null sets
    no limit."""
    half_life_days: float | None = Field(None, gt=0)
    """Age in days at which a vote weighs half as much as the newest event of the log. Null weighs all ages alike."""
    transcripts: Transcripts = "turns"
    """Whether a text of turns that begin with "Human:" and "Assistant:" is read as these turns, or stays one text."""
    date_order: DateOrder | None = None
    """Of dates such as 02.03.2025 and 3/2/2025, whether the day or the month stands first. Null finds it out from days
    over 12, and stops where it matters and none is."""
    until: date | None = None
    """Day, in UTC, after which events are refused, such as those of a clock that runs ahead. Null sets no limit."""
    encoding: str | None = None
    """Encoding of text files, such as cp1252. Null: UTF-8, or UTF-16 where a file is written in it."""
    max_row_bytes: int = Field(MAX_ROW_BYTES, gt=0)
    """Longest row; a longer one is rejected unread."""
    max_reject_share: float = Field(0.5, ge=0, le=1)
    """Share of events that may be rejected, answers that nobody voted on left out; more of them fail the stage."""

    @field_validator("label_words", "winners", mode="before")
    @classmethod
    def _takes_words_as_text(cls, words: Any) -> Any:
        # YAML takes true and 2 for no text, whatever the log means by them.
        return {str(word): meaning for word, meaning in words.items()} if isinstance(words, dict) else words

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
        words = {word_of(word): meaning for word, meaning in self.label_words.items()} | self.label_words
        spelling = VoteWords(self.label_threshold, self.undesired_threshold, self.ignored_labels, words)
        return Settings(self.columns, self.prompt_parts, self.winners, spelling)


def run(
    *,
    feedback: Input,
    feedback_events: Output,
    ledger: Output,
    metrics: Output,
    scratch: Scratch,
    params: IngestionParams,
) -> None:
    """Read the log and write its events, what became of every record, and the counts of both.

    Args:
        feedback: file or folder of the log.
        feedback_events: artifact to write, in the order of the log.
        ledger: artifact to write: each record used, merged, superseded, retracted, refused or part of others.
        metrics: JSON file to write; events = used + merged + superseded + rejects.
        scratch: folder for a database of what memory has no room for.
        params: source, layout, columns and votes.

    Raises:
        ValueError: there is no log, a file is damaged, or the votes can be read in two ways.
        StageFailure: more than `max_reject_share` of the events, or all of them, are rejected.
    """
    with open_log(feedback, params.source) as found, EventStore(scratch / "store") as store:
        log = FeedbackLog(
            found.files,
            store,
            params.settings(),
            layout=params.layout,
            format=params.format,
            pairs_from=params.pairs_from,
            unrated=params.unrated,
            score=params.score,
            vote_weight=params.vote_weight,
            transcripts=params.transcripts,
            date_order=params.date_order,
            until=None if params.until is None else _end_of(params.until),
            max_row_bytes=params.max_row_bytes,
            encoding=params.encoding,
        )
        counts = write_events(
            log,
            feedback_events,
            ledger,
            half_life_days=params.half_life_days,
            rater_cap=params.rater_cap,
        )
        decided, tied = log.resolution.num_contradictory()
    if counts.num_events == 0:
        raise ValueError(_none_found(params.source or str(feedback), log))
    if counts.fates["used"] == 0:
        raise StageFailure(f"none of {counts.num_events:,} rows can be used; {counts.summary()}", status=EXIT_REJECTED)
    # That nobody voted on most answers is as it should be, and no fault of theirs.
    num_unrated = counts.reasons["unrated"]
    num_refused, num_events = counts.num_refused - num_unrated, counts.num_events - num_unrated
    if num_refused > params.max_reject_share * num_events:
        raise StageFailure(
            f"{num_refused:,} of {num_events:,} rows are rejected, more than the share of "
            f"{params.max_reject_share} that ingestion.max_reject_share allows; {counts.summary()}",
            status=EXIT_REJECTED,
        )
    said = _metrics(log, counts, found.unread) | {"contradictory": {"decided": decided, "tied": tied}}
    write_json(metrics, said)
    _print(said)


def _none_found(where: str, log: FeedbackLog) -> str:
    """Why there is no event: no record, or records in which nobody voted or answered."""
    read = ", ".join(f"{count:,} records of {name}" for name, count in log.ledger.formats.items())
    if not read:
        return f"{where}: expected rows of feedback, found none; check the path"
    return (
        f"{where}: expected answers or votes, found none in {read}; add the table with the votes to the log, or "
        "name another format, such as format: rows"
    )


def _end_of(day: date) -> float:
    """Seconds since 1970 at which a day ends in UTC."""
    return (datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)).timestamp()


def _metrics(log: FeedbackLog, counts: EventCounts, unread_files: dict[str, str]) -> dict[str, Any]:
    """What became of events and records, what was understood without a setting, and what nothing reads."""
    return {
        "events": counts.num_events,
        **{fate: counts.fates[fate] for fate in ("used", "merged", "superseded")},
        "rejects": counts.num_refused,
        "reject_reasons": dict(counts.reasons),
        "files": {name: count for name, count in counts.files.items() if count},
        "records": dict(log.ledger.records),
        "formats": dict(log.ledger.formats),
        "understood": [*log.shape.said, *log.ledger.said],
        "unread": {
            "files": unread_files,
            "columns": dict(log.shape.unread),
            "labels": dict(log.ledger.unknown_labels),
            "scores": dict(log.ledger.other_scores),
        },
        "reading": {name: tally.as_json() for name, tally in log.tallies.items()},
    }


def _print(said: dict[str, Any]) -> None:
    print(
        f"ingestion: {said['events']:,} events = {said['used']:,} used + {said['merged']:,} merged + "
        f"{said['superseded']:,} superseded + {said['rejects']:,} rejects"
    )
    for reason, count in sorted(said["reject_reasons"].items()):
        print(f"  rejected {count:,}: {reason}")
    for name, tally in said["reading"].items():
        print(f"  {name}: {tally['rows']:,} rows of {tally['form']}")
    for sentence in said["understood"]:
        print(f"  {sentence}")
    unread = said["unread"]
    for name, why in unread["files"].items():
        print(f"  not read: the file {name}, {why}")
    if unread["columns"]:
        print(f"  read by nothing and kept as source: {', '.join(sorted(unread['columns']))}")
    if unread["labels"]:
        listed = ", ".join(f"{word} ({count:,})" for word, count in sorted(unread["labels"].items()))
        print(f"  no known vote: {listed}; ingestion.label_words says what these mean")
    for name, count in unread["scores"].items():
        print(f"  {count:,} scores {name} aren't read")


if __name__ == "__main__":
    stage_main(run)
