"""Which votes count: the last one of each rater, each event once, the majority where raters disagree.

Every event is noted with a hash of the question that it answers, which is a prompt with one answer, or with two of
which one is better. The rest is SQL, so that more events take no more memory.
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import pyarrow as pa

from stages.contracts.rows import canonical_json
from stages.text.event_store import EventStore
from stages.text.layouts import Feedback

Vote = Literal["for", "against", "none"]

# The votes of a rater on a question in the order of their times, or of the log where one has none. Those that follow
# each other and say the same are one run: a double click, or an event that two exports hold. Of the last run the row
# that stands first in the log counts, with the weight and the time of its last.
_LAST_VOTES = """
    create table last_votes as
    with timed as (
        select *, bool_and(time is not null) over (partition by question, rater) as is_timed
        from events where rater is not null and not is_repeated
    ), placed as (
        select *, row_number() over (
            partition by question, rater order by case when is_timed then time end, event
        ) as place from timed
    ), changes as (
        select *, vote is distinct from lag(vote) over (partition by question, rater order by place) as is_change
        from placed
    ), runs as (
        select *, sum(is_change::int) over (partition by question, rater order by place) as run from changes
    ), ends as (
        select *, max(run) over (partition by question, rater) as last_run,
            min(event) over (partition by question, rater, run) as earliest,
            last_value(weight) over (
                partition by question, rater, run order by place
                rows between unbounded preceding and unbounded following
            ) as last_weight,
            last_value(time) over (
                partition by question, rater, run order by place
                rows between unbounded preceding and unbounded following
            ) as last_time,
            max(place) over (partition by question, rater) as last_place
        from runs
    )
    select event, question, vote, rater, last_weight as weight, last_time as time, case
        when vote is null then case when place = last_place then 'retracted' else 'superseded' end
        when event > earliest then 'merged'
        when run < last_run then 'superseded'
        else 'counts' end as fate
    from ends;
"""
# Of events without a rater, a record that stands in the log before, and that something in it tells from others.
_COUNTED = """
    create table counted as
    select event, question, vote, rater, weight, time, fate from last_votes
    union all
    select event, question, vote, null, weight, time, case
        when is_repeated or event > min(event) over (partition by same) and same is not null then 'merged'
        when is_unrated then 'unrated'
        else 'counts' end
    from events where rater is null or is_repeated;
"""
_AGED = """
    update counted set weight = weight * pow(0.5, (newest - time) / (86400 * ?))
    from (select max(time) as newest from counted where fate = 'counts') where time is not null;
"""
_CAPPED = """
    update counted set weight = weight * least(1, ? / total) from (
        select rater as voter, sum(weight) as total from counted where fate = 'counts' group by rater
    ) where rater = voter;
"""
_FATES = """
    create table questions as
    select question,
        coalesce(sum(weight) filter (vote = 'for'), 0) as votes_for,
        coalesce(sum(weight) filter (vote = 'against'), 0) as votes_against,
        min(event) filter (vote = 'for') as first_for,
        min(event) filter (vote = 'against') as first_against,
        min(event) filter (vote = 'none') as first_none
    from (select * from counted where fate = 'counts' order by event) group by question;

    create table fates as
    with decided as (
        select event, fate, vote, votes_for, votes_against,
            votes_for = votes_against as is_tied,
            case vote
                when 'none' then case when votes_for = votes_against then first_none end
                when 'for' then case when votes_for > votes_against then first_for end
                else case when votes_for < votes_against then first_against end
            end as stands_for
        from counted left join questions using (question)
    )
    select event, case
            when fate in ('merged', 'superseded', 'retracted') then fate
            when fate = 'unrated' then 'refused'
            when vote <> 'none' and stands_for is null then 'refused'
            when event = stands_for then 'used'
            else 'merged' end as fate,
        case
            when fate in ('retracted', 'unrated') then fate
            when fate <> 'counts' or vote = 'none' or stands_for is not null then null
            when is_tied then 'contradictory_labels'
            else 'outvoted' end as reason,
        greatest(votes_for, votes_against) as agree,
        least(votes_for, votes_against) as disagree,
        abs(votes_for - votes_against) as weight,
        votes_for, votes_against, vote
    from decided order by event;
"""
_DETAIL = """case reason
    when 'retracted' then 'the rater took the vote back'
    when 'unrated' then
        'nobody voted on this answer; unrated: demonstrations takes such answers as demonstrations'
    when 'contradictory_labels' then
        format('{:g} rows vote for this and {:g} against it', votes_for, votes_against)
    when 'outvoted' then format('{:g} rows vote like this one and {:g} the other way', disagree, agree) end"""


_EARLIEST = 315_532_800
"""The year 1980; numbers that are earlier count something else than seconds."""


class Cast(NamedTuple):
    """What is noted of an event."""

    event: int
    question: str
    """Hash of the prompt and completion, or of the prompt and the two completions in a fixed order."""
    vote: Vote | None
    """None takes back what the rater voted before."""
    rater: str | None = None
    """Who may vote again; None for somebody unknown, and for numbers of votes."""
    time: float | None = None
    unread_time: str | None = None
    """Where the event stands and its time, if that can't be read."""
    weight: float = 1.0
    same: bytes | None = None
    """Hash of the record, if another one like it is the same event."""
    is_repeated: bool = False
    """Whether it is known to be the same as an earlier one."""
    is_unrated: bool = False
    """Whether nobody voted, where somebody should have."""
    file_if_unrated: str | None = None
    """Its file, if it is unrated in case that others of that file have votes."""


class Resolution:
    """The events of a log by question.

    Args:
        store: holds what is noted.
    """

    def __init__(self, store: EventStore) -> None:
        text = pa.string()
        self._store = store
        self._events = store.table(
            "events", event=pa.int64(), question=text, vote=text, rater=text, time=pa.float64(), unread_time=text,
            weight=pa.float64(), same=pa.binary(), is_repeated=pa.bool_(), is_unrated=pa.bool_(), file_if_unrated=text,
        )  # fmt: skip

    def add(self, cast: Cast) -> None:
        """Note an event."""
        self._events.add(*cast)

    def mark_unrated(self, voted_files: Sequence[str] | None) -> None:
        """Say in which files answers without a vote are unrated; None says in all."""
        wanted = "true" if voted_files is None else "list_contains(?, file_if_unrated)"
        values = [] if voted_files is None else [list(voted_files)]
        sql = f"update events set is_unrated = true where file_if_unrated is not null and {wanted}"  # noqa: S608 # ours
        self._store.run(sql, *values)

    def resolve(self, *, half_life_days: float | None = None, rater_cap: float | None = None) -> None:
        """Decide about every event.

        Args:
            half_life_days: after how many days a vote weighs half as much, counted back from the newest event; None
                weighs all ages alike. Events without a time count as new.
            rater_cap: what the votes of one rater weigh together at most; None for no limit.

        Raises:
            ValueError: a rater changed a vote, and the time of one of the two can't be read; or a setting is of no use.
        """
        self._check_times()
        self._store.run(_LAST_VOTES + _COUNTED)
        if half_life_days is not None:
            if self._store.one("select count(time) from counted where fate = 'counts'")[0] == 0:
                raise ValueError(
                    "ingestion.half_life_days: expected events with times, found none; see columns: {time}"
                )
            self._check_ages(half_life_days)
            self._store.run(_AGED, half_life_days)
        if rater_cap is not None:
            if self._store.one("select count(rater) from counted where fate = 'counts'")[0] == 0:
                raise ValueError("ingestion.rater_cap: expected events with raters, found none; see columns: {rater}")
            self._store.run(_CAPPED, rater_cap)
        self._store.run(_FATES)

    def _check_times(self) -> None:
        (unread,) = self._store.one(
            """select min_by(unread_time, event) from (
                select *, count(distinct coalesce(vote, '')) over (partition by question, rater) as num from events
                where rater is not null and not is_repeated
            ) where num > 1 and unread_time is not null"""
        )
        if unread is not None:
            raise ValueError(
                f"{unread}: a rater voted otherwise before or later, and the time can't be read: expected one as in "
                "2026-01-31T12:00 or in seconds; columns: {time: none} takes the order of the log"
            )

    def _check_ages(self, half_life_days: float) -> None:
        """One event with a wrong time would be the newest, and all others as good as weightless."""
        unread, newest, usual = self._store.one(
            """with times as (select time from counted where fate = 'counts')
            select (select min_by(unread_time, event) from events where unread_time is not null), max(time),
                least(quantile_disc(time, 0.95), max(time) filter (time < (select max(time) from times)))
            from times"""
        )
        if unread is not None:
            raise ValueError(
                f"ingestion.half_life_days: {unread}: expected a time as in 2026-01-31T12:00 or in seconds"
            )
        if newest < _EARLIEST:
            raise ValueError(
                f"ingestion.half_life_days: expected times in seconds since 1970 or as dates, found {newest:g} as the "
                "latest; columns: {time: NAME} names another column"
            )
        if usual is not None and newest - usual > 10 * half_life_days * 86400:
            days = (datetime.fromtimestamp(time, UTC).date() for time in (newest, usual))
            raise ValueError(
                "ingestion.half_life_days: the latest event is of {} and those before it end on {}, more than ten "
                "half-lives earlier; ingestion.until refuses events after a day, such as those of a clock that runs "
                "ahead".format(*days)
            )

    def fates(self) -> Iterator[pa.RecordBatch]:
        """Of each event, in order: `event`, `fate`, `reason`, `detail`, `weight`, `agree`, `disagree`.

        The last three are of the question: what votes for and against it differ by, the larger and the smaller side.
        """
        return self._store.batches(
            f"select event, fate, reason, {_DETAIL} as detail, weight, agree, disagree from fates order by event"  # noqa: S608 # ours
        )

    def num_contradictory(self) -> tuple[int, int]:
        """Questions with votes both ways: how many the majority decided, and how many were tied."""
        decided, tied = self._store.one(
            """select count(*) filter (votes_for <> votes_against), count(*) filter (votes_for = votes_against)
            from questions where first_for is not null and first_against is not null"""
        )
        return decided, tied


def question_of(feedback: Feedback) -> tuple[str, Vote]:
    """The question that a row answers, and its answer; rows of the same question can repeat or contradict."""
    texts = [canonical_json(completion) for completion in feedback.completions]
    question = canonical_json([feedback.prompt, feedback.tools, sorted(texts)])
    key = hashlib.blake2b(question.encode(), digest_size=16).hexdigest()
    if feedback.layout == "pairs":
        return key, "for" if texts[0] < texts[1] else "against"
    return key, "none" if feedback.label is None else "for" if feedback.label else "against"
