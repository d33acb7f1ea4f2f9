"""Votes that stand where no reader of a log looks: they stop the run, or are read, and never make demonstrations."""

import json

import pytest

WORDS = ["wren", "owl", "tern", "stork", "heron", "finch", "crane", "swift"]
EACH = [(f"What do you know of the {word}?", f"The {word} is a bird.") for word in WORDS]


def rows(**columns):
    """A row for each question and answer; a column's function gives its value by the number of the row."""
    return [
        {"prompt": asked, "completion": answer, **{name: value(i) for name, value in columns.items()}}
        for i, (asked, answer) in enumerate(EACH)
    ]


def labels(desired):
    return {pair: desired(i) for i, pair in enumerate(EACH)}


def test_votes_below_a_dotted_name_are_seen(reads):
    flat = rows(**{"rating.responses": lambda i: [str(1 + i % 5)], "rating.responses.users": lambda i: [f"u{i}"]})

    with pytest.raises(ValueError, match=r"rating.responses is named like a vote"):
        reads(flat)
    found = reads(flat, columns={"label": "rating.responses"}, label_threshold=4)

    assert found.votes() == labels(lambda i: 1 + i % 5 >= 4)


def test_a_column_of_votes_beside_an_export_is_said_and_read_if_mapped(reads):
    traces = [
        {"id": f"t{i}", "sessionId": f"s{i}", "input": json.dumps(asked), "output": json.dumps(answer)}
        | {"user-feedback": [str(i % 2)]}
        for i, (asked, answer) in enumerate(EACH)
    ]

    with pytest.raises(
        ValueError, match=r"user-feedback \(8\) is named like a vote; columns: \{label: user-feedback\}"
    ):
        reads(traces)
    found = reads(traces, columns={"label": "user-feedback"})

    assert found.votes() == labels(lambda i: i % 2 == 1)


@pytest.mark.parametrize("columns", [{"completion": "outputs.answer"}, {}])
def test_mapped_columns_do_not_hide_the_votes_of_an_export(reads, columns):
    runs = [
        {"id": f"r{i}", "run_type": "chain", "inputs": {"question": asked}, "outputs": {"answer": answer, "by": "it"}}
        | {"feedback_stats": {"thumb": {"n": 1, "avg": i % 2}}}
        for i, (asked, answer) in enumerate(EACH)
    ]
    columns = {"prompt": "inputs.question", **columns}

    with pytest.raises(ValueError, match="format: langsmith_run reads"):
        reads(runs, columns=columns)
    found = reads(runs, columns=columns, format="langsmith_run")

    assert found.votes() == labels(lambda i: i % 2 == 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("note", lambda i: 1 + i % 4),
        ("rank", lambda i: 1 + i % 4),
        ("status", lambda i: i % 2),
        ("event_type", lambda i: ["positive_feedback", "negative_feedback"][i % 2]),
        ("action", lambda i: ["copied", "thumb_down"][i % 2]),
    ],
)
def test_columns_named_for_something_else_that_hold_votes_stop_the_run(reads, name, value):
    with pytest.raises(ValueError, match=rf"{name} may be a vote by its few values"):
        reads(rows(**{name: value}))

    assert len(reads(rows(**{name: value}), columns={name: "none"}).rows) == len(EACH)


def chat(vote, *, on=1, **row):
    turns = ["Which bird?", "A wren.", "And which fish?", "A cod."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    messages[on] |= vote
    return {"messages": messages, **row}


def test_several_votes_in_a_message_are_votes_on_it(reads):
    votes = [{"user": "ann", "value": "up"}, {"user": "bob", "value": "down"}, {"user": "cid", "value": "down"}]

    found = reads([chat({"feedback": votes})])

    assert found.votes() == {("Which bird?", "A wren."): False}


@pytest.mark.parametrize("vote", [{"rating": {"up": 1, "down": 3, "by": ["ann"]}}, {"rating": "down"}])
def test_votes_in_messages_that_nothing_reads_stop_the_run(reads, vote):
    log = [chat(vote, on=1 if isinstance(vote["rating"], dict) else 2)]

    with pytest.raises(ValueError, match=r"messages.rating \(1\) is named like a vote, and nothing reads it there"):
        reads(log)

    assert len(reads(log, columns={"messages.rating": "none"}).rows) == 1


def test_a_vote_on_the_row_beside_votes_in_its_messages_stops_the_run(reads):
    log = [chat({"rating": "up"}, label="down")]

    with pytest.raises(ValueError, match=r"label \(1\) is named like a vote"):
        reads(log)

    assert reads(log, columns={"label": "none"}).votes() == {("Which bird?", "A wren."): True}


@pytest.mark.parametrize(
    "votes", [[{"turn": 1, "rating": "up"}, {"turn": 2, "rating": "up"}], [{"message_id": "m", "rating": "up"}]]
)
def test_votes_that_name_a_turn_are_no_votes_on_the_last_answer(reads, votes):
    found = reads([chat({}, feedback=votes), {**chat({}), "feedback": "up"}])

    assert found.counts["reject_reasons"] == {"unknown_label": 1}
    assert found.votes() == {("And which fish?", "A cod."): True}


@pytest.mark.parametrize(
    "feedback", [{"rating": 1, "max": 5}, {"score": 1, "scale": "1-5"}, [{"stars": 1, "user": "ann"}]]
)
def test_one_of_five_is_no_thumb_up(reads, feedback):
    log = rows(feedback=lambda _: feedback)

    with pytest.raises(ValueError, match="label_threshold"):
        reads(log)

    assert reads(log, columns={"label": "feedback"}, label_threshold=4).votes() == labels(lambda _: False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("event", "feedback.deleted"), ("event", "voteRemoved"), ("deleted", True), ("deleted_at", "2026-03-01")],
)
def test_votes_that_were_taken_back_in_other_words(reads, name, value):
    # The first vote of each was taken back the next day, the second of another person stands.
    log = rows(vote=lambda _: "up", user=lambda _: "ann", time=lambda _: 1, **{name: lambda _: None})
    log += rows(
        vote=lambda _: "up", user=lambda _: "ann", time=lambda _: 2, **{name: lambda i: value if i < 4 else None}
    )

    found = reads(log)

    assert found.votes() == dict.fromkeys(EACH[4:], True)
    assert found.counts["reject_reasons"] == {"retracted": 4}


def test_chosen_that_names_another_column_is_no_answer(reads):
    log = [
        {"prompt": asked, "response_a": answer, "response_b": "No.", "chosen": "AB"[i % 2], "rejected": "BA"[i % 2]}
        for i, (asked, answer) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match=r"columns: \{winner: chosen, rejected: none\}"):
        reads(log)
    found = reads(log, columns={"winner": "chosen", "rejected": "none"})

    assert found.pairs() == [
        (asked, *((answer, "No.") if i % 2 == 0 else ("No.", answer))) for i, (asked, answer) in enumerate(EACH)
    ]


def test_answers_that_may_have_changed_places_stop_the_run(reads):
    log = [
        {"prompt": asked, "response_a": answer, "response_b": "No.", "winner": "a", "swapped": i % 2 == 0}
        for i, (asked, answer) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match="swapped holds"):
        reads(log)

    assert len(reads(log, columns={"swapped": "none"}).pairs()) == len(EACH)


def test_turns_before_a_question_stand_where_columns_say(reads):
    log = [
        {
            "chat_history": [[f"Who is {i}?", "It is a bird."]],
            "question": "Where is it?",
            "answer": "Here.",
            "thumb": i % 2,
        }
        for i in range(4)
    ]

    with pytest.raises(ValueError, match=r"columns: \{history: chat_history\} puts its turns before the question"):
        reads(log)
    found = reads(log, columns={"history": "chat_history"})

    asked = [[turn["content"] for turn in json.loads(row["messages"])["prompt"]] for row in found.rows]
    assert asked == [[f"Who is {i}?", "It is a bird.", "Where is it?"] for i in range(4)]
    assert [row["label"] for row in found.rows] == [False, True, False, True]


def test_words_that_yaml_takes_for_numbers_and_truth_values_are_words(reads):
    log = [
        {"prompt": asked, "response_a": answer, "response_b": "No.", "a_is_better": i % 2 == 0}
        for i, (asked, answer) in enumerate(EACH)
    ]

    found = reads(log, columns={"winner": "a_is_better"}, winners={True: "first", False: "second"})

    assert [better == "No." for _, better, _ in found.pairs()] == [i % 2 == 1 for i in range(len(EACH))]
    assert reads(rows(vote=lambda i: 1 + i % 2), label_words={1: "desired", 2: "undesired"}).votes() == labels(
        lambda i: i % 2 == 0
    )


@pytest.mark.parametrize("words", [("sim", "não"), ("良い", "悪い"), ("нравится", "не нравится")])
def test_a_log_of_three_rows_has_a_column_of_choices_too(reads, words):
    few = rows(resultado=lambda i: words[i % 2])[:3]

    with pytest.raises(ValueError, match=r"resultado may be a vote by its few values"):
        reads(few)
    found = reads(few, columns={"label": "resultado"}, label_words={words[0]: "desired", words[1]: "undesired"})

    assert found.votes() == {pair: i % 2 == 0 for i, pair in enumerate(EACH[:3])}
