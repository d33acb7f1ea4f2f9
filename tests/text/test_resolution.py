"""Which votes count: duplicates, contradictions, later votes, ages and raters, on events as rows of a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.event_store import EventStore
from stages.text.layouts import read_feedback
from stages.text.resolution import Cast, Resolution, question_of


@pytest.fixture
def resolved(tmp_path):
    """What becomes of events: reason or fate of each, and the numbers of its question."""

    def of(casts, **settings):
        with EventStore(tmp_path / "store") as store:
            resolution = Resolution(store)
            for cast in casts:
                resolution.add(cast)
            resolution.resolve(**settings)
            rows = [row for batch in resolution.fates() for row in batch.to_pylist()]
            return [row["reason"] or row["fate"] for row in rows], rows, resolution.num_contradictory()

    return of


def casts_of(rows):
    return [Cast(i, *question_of(read_feedback(row))) for i, row in enumerate(rows)]


def voted(label):
    return {"prompt": "p", "completion": "c", "label": label}


def preferred(chosen, rejected):
    return {"prompt": "p", "chosen": chosen, "rejected": rejected}


def cast(event, vote, rater="ann", time=None, **fields):
    return Cast(event, fields.pop("question", "q"), vote, rater, time, **fields)


def test_the_majority_decides(resolved):
    fates, rows, contradictory = resolved(casts_of([voted(0), voted(1), voted(1)]))

    assert (fates, contradictory) == (["outvoted", "used", "merged"], (1, 0))
    assert (rows[1]["weight"], rows[1]["agree"], rows[1]["disagree"]) == (1.0, 2.0, 1.0)
    assert rows[0]["detail"] == "1 rows vote like this one and 2 the other way"


def test_a_tie_is_refused(resolved):
    fates, _, contradictory = resolved(casts_of([voted(0), voted(1)]))

    assert (fates, contradictory) == (["contradictory_labels", "contradictory_labels"], (0, 1))


def test_reversed_pairs_contradict_each_other(resolved):
    rows = [preferred("a", "b"), preferred("b", "a"), preferred("b", "a"), preferred("a", "c")]

    assert resolved(casts_of(rows))[0] == ["outvoted", "used", "merged", "used"]


def test_a_demonstration_of_a_rated_completion_repeats_it(resolved):
    demonstration = {"prompt": "p", "completion": "c"}

    assert resolved(casts_of([demonstration, voted(1), demonstration]))[0] == ["merged", "used", "merged"]
    assert resolved(casts_of([demonstration, demonstration]))[0] == ["used", "merged"]


def test_bare_prompts_repeat_each_other_only(resolved):
    assert resolved(casts_of([{"prompt": "p"}, voted(1), {"prompt": "p"}]))[0] == ["used", "used", "merged"]


def test_of_a_rater_the_last_vote_counts_and_clicks_in_a_row_are_one(resolved):
    # In time: for (events 3 and 0, one run), against (1), for (2, 4): of the last run event 2 stands first in the log.
    times = {0: 2.0, 1: 3.0, 2: 5.0, 3: 1.0, 4: 4.0}
    sides = {0: "for", 1: "against", 2: "for", 3: "for", 4: "for"}

    fates, _, _ = resolved([cast(i, sides[i], time=times[i]) for i in range(5)])

    assert fates == ["superseded", "superseded", "used", "merged", "merged"]


def test_a_vote_taken_back_counts_for_nobody(resolved):
    back = [cast(0, "for", time=1.0), cast(1, None, time=2.0), cast(2, "against", "bob", 1.0)]

    assert resolved(back)[0] == ["superseded", "retracted", "used"]


def test_without_times_the_order_of_the_log_decides(resolved):
    assert resolved([cast(0, "for", time=9.0), cast(1, "against")])[0] == ["superseded", "used"]


def test_an_unreadable_time_stops_where_a_vote_was_changed(resolved):
    unread = {"unread_time": "log.jsonl:3: 'May'"}

    with pytest.raises(ValueError, match=r"log.jsonl:3: 'May': a rater voted otherwise before or later"):
        resolved([cast(0, "for", **unread), cast(1, "against", **unread)])
    assert resolved([cast(0, "for", **unread), cast(1, "for", **unread)])[0] == ["used", "merged"]


def test_old_votes_weigh_less(resolved):
    start, later = 1_700_000_000.0, 1_700_864_000.0
    # Ten days before the newest, two votes weigh 2 * 0.5 ** (10 / 5) = 0.5, against 1 of the newest.
    votes = [cast(0, "for", "a", start), cast(1, "for", "b", start), cast(2, "against", "c", later)]

    fates, rows, _ = resolved(votes, half_life_days=5.0)

    assert fates == ["outvoted", "outvoted", "used"]
    assert rows[2]["weight"] == 0.5
    with pytest.raises(ValueError, match="half_life_days: expected events with times"):
        resolved([cast(0, "for")], half_life_days=5.0)


def test_a_rater_with_many_votes_weighs_no_more_than_the_cap(resolved):
    # Ann's four votes weigh 2 together, so each 0.5; bob's weighs 1 and outweighs hers on question 0.
    votes = [cast(i, "for", question=str(i)) for i in range(4)] + [cast(4, "against", "bob", question="0")]

    fates, rows, _ = resolved(votes, rater_cap=2.0)

    assert fates == ["outvoted", "used", "used", "used", "used"]
    assert [row["weight"] for row in rows] == [0.5] * 5
    with pytest.raises(ValueError, match="rater_cap: expected events with raters"):
        resolved([cast(0, "for", None)], rater_cap=2.0)


ROW = st.builds(
    lambda prompt, completion, label: {"prompt": prompt, "completion": completion, "label": label},
    st.sampled_from("ab"),
    st.sampled_from("cd"),
    st.booleans(),
)


@given(st.lists(ROW, max_size=30))
def test_each_question_is_answered_once_or_refused_whole(tmp_path_factory, rows):
    with EventStore(tmp_path_factory.mktemp("votes") / "store") as store:
        resolution = Resolution(store)
        for one in casts_of(rows):
            resolution.add(one)
        resolution.resolve()
        found = [row["reason"] or row["fate"] for batch in resolution.fates() for row in batch.to_pylist()]

    for question in {(row["prompt"], row["completion"]) for row in rows}:
        votes = [
            (row["label"], verdict)
            for row, verdict in zip(rows, found, strict=True)
            if (row["prompt"], row["completion"]) == question
        ]
        used = [label for label, verdict in votes if verdict == "used"]
        num_up = sum(label for label, _ in votes)
        if 2 * num_up == len(votes):
            assert {verdict for _, verdict in votes} == {"contradictory_labels"}
        else:
            assert used == [2 * num_up > len(votes)]
