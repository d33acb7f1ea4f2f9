"""Stage `ingestion`: events and a ledger of every record, whatever the order and the files of a log."""

import functools
import json
import subprocess
import sys
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.artifact import read_table
from stages.contracts.feedback_events import FEEDBACK_EVENTS
from stages.contracts.files import tree_digest
from stages.contracts.ledger import LEDGER
from stages.ingestion import IngestionParams, run
from tests.stages.own_logs import write


class Ingested(NamedTuple):
    events: list
    ledger: list
    counts: dict

    def used(self):
        numbers = {row["event"] for row in self.ledger if row["fate"] == "used"}
        return [event for event in self.events if event["event"] in numbers]


def ingest(log, folder, **params):
    folder.mkdir(parents=True, exist_ok=True)
    run(
        feedback=log,
        feedback_events=folder / "feedback_events",
        ledger=folder / "ledger",
        metrics=folder / "metrics.json",
        scratch=folder / "scratch",
        params=IngestionParams(**{"max_reject_share": 1.0, **params}),
    )
    return Ingested(
        read_table(folder / "feedback_events", FEEDBACK_EVENTS).to_pylist(),
        read_table(folder / "ledger", LEDGER).to_pylist(),
        json.loads((folder / "metrics.json").read_text()),
    )


@pytest.fixture
def ingests(tmp_path):
    def of(rows, **params):
        return ingest(write(tmp_path / "log" / "log.jsonl", rows), tmp_path / "out", **params)

    return of


def vote(label, **columns):
    return {"prompt": "Which bird?", "completion": "A wren.", "label": label, **columns}


def test_an_event_says_who_voted_what_on_what_and_where(ingests):
    messages = [{"content": "Which bird?", "role": "user"}]
    row = vote("up", user="ann", time="1970-01-02", chat="c", turn=2, model="m", topic="birds", weight=3)

    (event,) = ingests([{**row, "prompt": messages}]).events

    expected = {
        "event": 0,
        "layout": "unpaired",
        "conversation": "c",
        "turn": 2.0,
        "prompt": json.dumps(messages, separators=(",", ":")),
        "answer": json.dumps([{"content": "A wren.", "role": "assistant"}], separators=(",", ":")),
        "rejected": None,
        "label": True,
        "vote": '"up"',
        "weight": 3.0,
        "rater": "ann",
        "time": 86400.0,
        "model": "m",
        "file": "log.jsonl",
        "line": 1,
        "vote_file": None,
    }
    assert {name: event[name] for name in expected} == expected
    assert json.loads(event["source"])["topic"] == "birds"


def test_a_vote_that_stands_apart_is_named_with_its_answer(ingests):
    found = ingests(
        [{"message_id": "a", "user": "ann", "vote": "down"}, {"id": "a", "question": "Why so?", "answer": "So."}]
    )

    (event,) = found.events
    assert (event["line"], event["vote_file"], event["vote_line"], event["label"]) == (2, "log.jsonl", 1, False)
    assert [(row["line"], row["fate"]) for row in found.ledger] == [(1, "joined"), (2, "used")]


def test_ratings_and_numbers_of_votes_are_kept(ingests):
    (rated,) = ingests([vote(4)], label_threshold=3).events
    (counted,) = ingests([{"prompt": "Which?", "completion": "A wren.", "up": 12, "down": 3}]).events

    assert (rated["rating"], rated["label"]) == (4.0, True)
    assert (counted["up"], counted["down"], counted["label"], counted["weight"]) == (12.0, 3.0, True, 9.0)


def test_the_numbers_of_raters_that_disagree_are_kept(ingests):
    rows = [vote("up", user=user) for user in "abc"] + [vote("down", user="d")]

    (event,) = ingests(rows).used()

    assert (event["label"], event["agree"], event["disagree"], event["weight"]) == (True, 3.0, 1.0, 1.0)


def test_every_record_is_in_the_ledger_with_its_reason(ingests):
    rows = [
        vote("up", user="ann", time=1),
        vote("down", user="ann", time=2),
        vote("down", user="bob", time=2),
        vote("down", user="cid", time=1),
        vote(None, user="cid", time=2),
        "no JSON",
        vote("sideways", user="dan", time=1),
        {"message_id": "nowhere", "user": "eve", "label": "up", "time": 1},
    ]
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)

    found = ingests(text)

    fates = [(row["fate"], row["reason"]) for row in found.ledger]
    assert fates == [
        ("superseded", None),
        ("used", None),
        ("merged", None),
        ("superseded", None),
        ("retracted", "retracted"),
        ("refused", "json_invalid"),
        ("refused", "unknown_label"),
        ("refused", "vote_without_answer"),
    ]
    assert [row["row"] for row in found.ledger if row["reason"] == "json_invalid"] == ["no JSON"]
    assert all((row["row"] is None) == (row["reason"] is None) for row in found.ledger)
    counts = found.counts
    assert counts["events"] == counts["used"] + counts["merged"] + counts["superseded"] + counts["rejects"] == len(rows)


def test_a_vote_apart_can_be_taken_back(ingests):
    answers = [{"id": name, "question": f"Which is {name}?", "answer": "This."} for name in "ab"]
    votes = [
        {"message_id": name, "user": "ann", "vote": value, "time": time}
        for name, value, time in (("a", "up", 1), ("b", "up", 1), ("a", None, 2))
    ]

    found = ingests([*answers, *votes])

    assert [event["prompt"] for event in found.used()] == ['"Which is b?"']
    assert Counter(row["fate"] for row in found.ledger) == {"used": 1, "superseded": 1, "retracted": 1, "joined": 3}


def test_scores_that_are_not_asked_for_are_left_out(ingests):
    asked = {"id": "o", "traceId": "t", "input": "Name x.", "output": "It is 0."}
    scores = [{"id": name, "traceId": "t", "name": name, "value": 1} for name in ("thumb", "length")]

    assert [row["fate"] for row in ingests([asked, *scores], score="thumb").ledger] == ["used", "joined", "left_out"]


def test_a_log_of_votes_that_age(ingests):
    first, later = "2025-01-01", "2025-01-31"
    rows = [vote("up", user="a", time=first), vote("up", user="b", time=first), vote("down", user="c", time=later)]

    (event,) = ingests(rows, half_life_days=10).used()

    # Three half-lives leave 2 / 8 of the old votes.
    assert (event["label"], event["weight"], event["agree"], event["disagree"]) == (False, 0.75, 1.0, 0.25)


def test_equal_logs_give_equal_bytes_and_leave_nothing_behind(tmp_path):
    log = write(
        tmp_path / "log.jsonl",
        [vote("up", user=str(i % 7), time=1_700_000_000 + i, weight=0.1 * i + 0.1) for i in range(60)],
    )

    for name in ("one", "two"):
        ingest(log, tmp_path / name, rater_cap=0.3, half_life_days=1)

    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    assert not list((tmp_path / "one" / "scratch").glob("*"))


# ---- any stream of votes, against a resolver that holds all of it ----


class Said(NamedTuple):
    """A vote of a stream; None takes back."""

    answer: str
    rater: str | None
    value: str | None
    time: int


STREAM = st.lists(
    st.builds(
        Said,
        st.sampled_from("pqr"),
        st.sampled_from(["ann", "bob", "cid", None]),
        st.sampled_from(["up", "down", None]),
        st.integers(0, 5),
    ),
    max_size=16,
)


def reference(votes):
    """By answer, its label and the numbers of votes for and against; None where they are as many.

    Args:
        votes: id and vote of each record, in the order of the log.
    """
    seen, last, cast = set(), {}, []
    for place, (event, said) in enumerate(votes):
        if said.rater is None:
            if event not in seen and said.value is not None:
                cast.append((said.answer, said.value))
            seen.add(event)
            continue
        key = (said.answer, said.rater)
        if key not in last or (said.time, place) > last[key][:2]:
            last[key] = (said.time, place, said.value)
    cast += [(answer, value) for (answer, _), (_, _, value) in last.items() if value is not None]
    found = {}
    for answer in {answer for answer, _ in cast}:
        ups, downs = (sum(one == (answer, value) for one in cast) for value in ("up", "down"))
        found[answer] = None if ups == downs else (ups > downs, max(ups, downs), min(ups, downs))
    return found


@pytest.mark.parametrize("are_apart", [False, True])
@settings(max_examples=30)
@given(stream=STREAM, data=st.data())
def test_any_stream_comes_to_what_the_reference_says(tmp_path_factory, are_apart, stream, data):
    folder = tmp_path_factory.mktemp("stream")
    identified = list(enumerate(stream))
    copies = data.draw(st.lists(st.sampled_from(identified), max_size=4)) if identified else []
    shuffled = data.draw(st.permutations([*identified, *copies]))
    files = sorted((data.draw(st.sampled_from("xyz")), place) for place in range(len(shuffled)))
    in_order = [(file, shuffled[place]) for file, place in files]
    kept = {"question": "Else?", "answer": "k"}
    answers = [{"id": name, "question": "Which?", "answer": name} for name in "pqr"]

    def row_of(event, said):
        about = {"user": said.rater, "time": said.time, "vote": said.value, "event_id": f"e{event}"}
        if are_apart:
            return {"message_id": said.answer, "id": f"e{event}", **about}
        return {"question": "Which?", "answer": said.answer, "id": f"e{event}", **about}

    for name in "xyz":
        rows = [row_of(*one) for file, one in in_order if file == name]
        write(folder / "log" / f"{name}.jsonl", rows)
    # What is always kept, since a log of which nothing is left stops the stage.
    beside = [{**kept, "vote": "up", "user": "k", "time": 0, "id": "k"}]
    write(folder / "log" / "w.jsonl", [*(answers if are_apart else []), *beside])

    found = ingest(folder / "log", folder / "out", vote_weight="counted")

    used = {
        json.loads(event["answer"]): (event["label"], event["weight"], event["agree"], event["disagree"])
        for event in found.used()
        if event["prompt"] == '"Which?"'
    }
    expected = {answer: one for answer, one in reference([one for _, one in in_order]).items() if one}
    assert used == {
        answer: (label, more - fewer, more if fewer else None, fewer or None)
        for answer, (label, more, fewer) in expected.items()
    }
    places = Counter((row["file"], row["line"]) for row in found.ledger)
    assert places.keys() == {(f"{name}.jsonl", i + 1) for name in "wxyz" for i in range(_lines(folder, name))}
    counts = found.counts
    assert counts["events"] == counts["used"] + counts["merged"] + counts["superseded"] + counts["rejects"]


def _lines(folder, name):
    return len((folder / "log" / f"{name}.jsonl").read_text().splitlines())


# ---- where logs lie and how large they are ----


def test_a_log_at_a_web_address_is_read(tmp_path):
    write(tmp_path / "served" / "log.jsonl", [vote("up"), vote("up", completion="A teal.")])
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"

        found = ingest(tmp_path, tmp_path / "out", source=f"{address}/log.jsonl")
        with pytest.raises(ValueError, match=r"expected feedback at http.*none\.jsonl, but it can't be read"):
            ingest(tmp_path, tmp_path / "none", source=f"{address}/none.jsonl")
        server.shutdown()

    assert (found.counts["used"], found.events[0]["file"]) == (2, "log.jsonl")


def peak_mb(num_events):
    """Peak of main memory of a process that ingests a log of votes that stand apart from their answers."""
    command = [sys.executable, "-m", "benchmarks.ingest_events", "--events", str(num_events)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return float(said.rpartition(" MB")[0].rpartition(" ")[2].replace(",", ""))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_memory_does_not_grow_with_the_events():
    small, large = peak_mb(20_000), peak_mb(220_000)

    # Half a kilobyte of each of 200,000 more events would be as much; the database's own buffers may fill up somewhat.
    assert large < small + 100
