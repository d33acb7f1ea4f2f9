"""Logs as teams export them: read right, or stopped with the setting that decides. Each is recounted here."""

import json
import re

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.stage import StageFailure
from tests.stages.own_logs import read, turns, write
from tests.text.tiny_tokenizers import byte_level, save_as_model


def rated(i, **columns):
    return {"prompt": f"Which bird is number {i} of the list?", "completion": f"Bird {i}.", **columns}


# ---- columns ----


def test_a_mapped_column_that_no_row_has_names_the_nearest(reads):
    with pytest.raises(ValueError, match=r"names a column that no row has; nearest is thumbs"):
        reads([rated(0, thumbs="up")], columns={"label": "thumb"})


@pytest.mark.parametrize("name", ["feedback", "user_rating", "thumbs", "Score", "liked_it", "vote"])
def test_a_column_named_like_a_vote_is_read_where_its_values_are_votes(reads, name):
    found = reads([rated(0, **{name: "up"}), rated(1, **{name: "down"})])

    assert found.counts["labels"] == {"desired": 1, "undesired": 1}
    assert any(name in sentence for sentence in found.counts["understood"])


def test_words_for_votes_are_votes_whatever_their_column_is_called(reads):
    assert list(reads([rated(0, pressed="up"), rated(1, pressed="down")]).votes().values()) == [True, False]
    assert list(reads([rated(0, is_correct=True), rated(1, is_correct=False)]).votes().values()) == [True, False]


@pytest.mark.parametrize("values", [["too long", "nice one"], [2, 5], [0.25, 0.5], ["A+", "C-"]])
def test_a_column_named_like_a_vote_whose_values_are_unclear_stops(reads, values):
    with pytest.raises(ValueError, match=r"feedback is named like a vote and holds .*\{feedback: none\}"):
        reads([rated(i, feedback=value) for i, value in enumerate(values)])


@pytest.mark.parametrize(
    "columns",
    [
        lambda i: {"cached": bool(i)},
        lambda i: {"helpfulness": i, "correctness": 1 - i},
        lambda i: {"annotations": [{"by": "ann", "note": "up"}, {"by": "bob", "note": "down"}]},
        lambda i: {"votes": {"up": 3, "down": i}},
    ],
)
def test_what_may_be_votes_makes_no_demonstrations(reads, columns):
    with pytest.raises(ValueError, match="none}|none, "):
        reads([rated(i, **columns(i)) for i in range(2)])


def test_numbers_may_be_prompts(reads):
    assert reads([{"prompt": "41", "completion": "Forty-one.", "label": 1}]).counts["rows_kept"] == 1


def test_none_leaves_a_column_out_on_purpose(reads):
    found = reads([rated(0, feedback="too long")], columns={"feedback": "none"})

    assert (found.rows[0]["label"], json.loads(found.rows[0]["source"])) == (None, {"feedback": "too long"})


def test_two_columns_of_votes_stop(reads):
    with pytest.raises(ValueError, match="which is the vote"):
        reads([rated(0, thumbs="up", stars="down")])


def test_a_vote_that_contradicts_the_label_stops(reads):
    with pytest.raises(ValueError, match="thumbs says the opposite of label in 1 rows"):
        reads([rated(0, label=1, thumbs="down"), rated(1, label=1, thumbs="up")])


def test_ratings_without_a_threshold_show_their_values(reads):
    with pytest.raises(ValueError, match=r"holds ratings, 1 \(1\), 5 \(2\)"):
        reads([rated(0, label=1), rated(1, label=5), rated(2, label="5")])


def test_ratings_between_two_thresholds_say_neither(reads):
    found = reads([rated(i, label=i) for i in range(1, 6)], label_threshold=4, undesired_threshold=2)

    assert list(found.votes().values()) == [False, False, True, True]
    assert found.counts["reject_reasons"] == {"ignored_label": 1}


def test_counts_of_votes_have_their_own_columns(reads):
    rows = [rated(0, up=7, down=2), rated(1, up=1, down=20), rated(2, up=0, down=0), rated(3, up=4, down=4)]

    found = reads(rows)

    assert [(row["label"], row["weight"]) for row in found.rows] == [(True, 5.0), (False, 19.0)]
    assert found.counts["reject_reasons"] == {"no_label": 1, "contradictory_labels": 1}
    with pytest.raises(ValueError, match=r"columns: \{up: up, down: down\}"):
        reads(rows, columns={"label": "up"}, label_threshold=1)


def test_no_button_pressed_is_no_vote(reads):
    rows = [rated(i, thumbs_up=up, thumbs_down=down) for i, (up, down) in enumerate([(1, 0), (0, 1), (0, 0)])]

    found = reads(rows)

    assert found.counts["labels"] == {"desired": 1, "undesired": 1}
    with pytest.raises(ValueError, match="liked is named like a vote"):
        reads([rated(0, liked=True), rated(1, liked=False)])


@pytest.mark.parametrize("name", ["disliked", "is_bad", "thumbs_down", "toxicity", "unhelpful_vote", "downvoted"])
def test_a_column_for_what_is_bad_is_no_thumbs_up(reads, name):
    with pytest.raises(ValueError, match="none}"):
        reads([rated(0, **{name: True}), rated(1, **{name: True})])
    with pytest.raises(ValueError, match="none}"):
        reads([rated(0, **{name: 1}), rated(1, **{name: 0})])
    rows = [rated(0, **{name: True}), rated(1, **{name: False})]
    with pytest.raises(ValueError, match="label_words"):
        reads(rows, columns={"label": name})
    found = reads(rows, columns={"label": name}, label_words={"true": "undesired", "false": "none"})
    assert list(found.votes().values()) == [False]


def test_buttons_of_messages_count_where_they_are_pressed(reads):
    pressed = [
        {"liked": True, "disliked": False},
        {"liked": False, "disliked": True},
        {"liked": False, "disliked": False},
    ]
    messages = [
        turn
        for i, buttons in enumerate(pressed)
        for turn in (human(f"Is it {i}?"), {"role": "assistant", "content": f"So {i}.", **buttons})
    ]

    assert list(reads([{"messages": messages}]).votes().values()) == [True, False]


def test_votes_are_understood_or_listed_word_by_word(reads):
    words = [
        "\U0001f44d\U0001f3fe",
        "\U0001f44e\U0001f3fb",
        {"value": 1},
        ["down"],
        "not useful",
        "fine",
        "fine",
        "so so",
    ]

    found = reads([rated(i, label=word) for i, word in enumerate(words)])

    assert list(found.votes().values()) == [True, False, True, False, False]
    assert found.counts["unread"]["labels"] == {"fine": 2, "so so": 1}
    assert reads([rated(0, label="fine")], label_words={"fine": "desired"}).rows[0]["label"] is True


def test_a_vote_below_other_keys_is_named_by_a_path(reads):
    rows = [rated(0, meta={"ui": {"pressed": "down"}})]

    assert reads(rows, columns={"label": "meta.ui.pressed"}).rows[0]["label"] is False


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bewertet", ["gut", "naja"]),
        ("passed", [1, 0]),
        ("mood", ["positive", "negative"]),
        ("coherence", [0, 3]),
        ("escalated", ["False", "True"]),
    ],
)
def test_a_column_of_few_values_beside_answers_without_votes_stops(reads, name, values):
    rows = [rated(i, **{name: values[i % 2]}) for i in range(6)]

    with pytest.raises(ValueError, match=rf"{name} may be a vote by its (few )?values.*{{{name}: none}}"):
        reads(rows)
    assert reads(rows, columns={name: "none"}).counts["layouts"] == {"demonstrations": 6}


def test_a_flag_that_only_some_answers_carry_stops(reads):
    with pytest.raises(ValueError, match="escalated may be a vote"):
        reads([rated(i, **({"escalated": "yes"} if i < 2 else {})) for i in range(6)])


def test_topics_and_languages_of_demonstrations_are_no_votes(reads):
    rows = [rated(i, language="en" if i % 2 else "de", topic="birds", difficulty=i % 3) for i in range(12)]

    assert reads(rows).counts["layouts"] == {"demonstrations": 12}


def test_truth_values_under_the_tag_of_a_kto_set_are_votes(reads):
    turns = [{"from": "human", "value": "Name a tern."}, {"from": "gpt", "value": "A rook."}]

    assert list(reads([{"conversations": turns, "kto_tag": False}]).votes().values()) == [False]


@pytest.mark.parametrize("name", ["stars", "nps", "csat_score"])
def test_one_is_no_thumbs_up_on_a_scale(reads, name):
    rows = [rated(i, **{name: 1}) for i in range(3)]

    with pytest.raises(ValueError, match=r"holds ratings, 1 \(3\)"):
        reads(rows)
    assert set(reads(rows, label_threshold=4).votes().values()) == {False}


@pytest.mark.parametrize(
    ("up", "down"), [(":+1:", ":-1:"), (":thumbsup:", ":thumbsdown::skin-tone-2:"), ("gut", "schlecht")]
)
def test_shortcodes_and_words_of_other_languages_are_votes(reads, up, down):
    assert list(reads([rated(0, reaction=up), rated(1, reaction=down)]).votes().values()) == [True, False]


# ---- parts of the question ----


def test_instruction_and_input_are_the_question(reads):
    rows = [
        {"instruction": "Name its colour.", "input": "the sea", "output": "Blue.", "vote": "up"},
        {"instruction": "Name its colour.", "input": "the sun", "output": "Blue.", "vote": "down"},
        {"instruction": "Name a colour.", "input": "", "output": "Blue.", "vote": "up"},
    ]

    assert reads(rows).votes() == {
        ("Name its colour.\n\nthe sea", "Blue."): True,
        ("Name its colour.\n\nthe sun", "Blue."): False,
        ("Name a colour.", "Blue."): True,
    }


def test_an_answer_beside_turns_that_ask_is_their_answer(reads):
    turns_asked = [human("Hi"), {"role": "assistant", "content": "Yo"}, human("Name a gull.")]

    found = reads([{"messages": turns_asked, "response": "A kittiwake.", "label": 1}])

    assert found.votes() == {("Name a gull.", "A kittiwake."): True}


def test_nested_parts_of_the_question_stop_too(reads):
    rows = [{**rated(0, label=1, docs=[text]), "completion": text} for text in ("On gulls", "On terns")]

    with pytest.raises(ValueError, match=r"docs .*prompt_parts"):
        reads(rows)


@pytest.mark.parametrize("name", ["context", "passage", "input", "target_language", "persona"])
def test_a_part_of_the_question_that_nothing_reads_stops(reads, name):
    rows = [rated(0, label=1, **{name: "German"}), {**rated(0, label=0, **{name: "Danish"}), "completion": "Wren."}]

    with pytest.raises(ValueError, match=rf"{name} .*prompt_parts: \[{name}, prompt\].*{{{name}: none}}"):
        reads(rows)
    found = reads(rows, prompt_parts=[name, "prompt"])
    assert [question for question, _ in found.votes()] == [
        "German\n\nWhich bird is number 0 of the list?",
        "Danish\n\nWhich bird is number 0 of the list?",
    ]


def test_columns_about_a_row_may_differ(reads):
    rows = [
        rated(0, label=1, model="a", annotator="x", comment="why not", url="http://a", run=1),
        {**rated(0, label=0, model="b", annotator="y", comment="no", url="http://b", run=2), "completion": "Wren."},
    ]

    assert reads(rows).counts["rows_kept"] == 2


def test_system_and_history_are_turns(reads):
    row = rated(0, label=1, system="Be brief.", history=[["Hi", "Hello"], ["Ready?", "Yes"]])

    (found,) = reads([row]).rows

    assert turns(found) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Ready?"),
        ("assistant", "Yes"),
        ("user", row["prompt"]),
    ]


def test_json_text_that_is_a_conversation_is_one(reads):
    for cell in (json.dumps([{"role": "user", "content": "Hi"}]), "[{'role': 'user', 'content': 'Hi'}]"):
        (found,) = reads([{"prompt": cell, "completion": "Yo", "label": 1}]).rows
        assert turns(found) == [("user", "Hi")]


def test_plain_prompts_go_through_the_template_of_a_chat_model(reads, tmp_path):
    (found,) = reads([rated(0, label=1)]).rows
    plain = byte_level()
    plain.chat_template = None
    log = write(tmp_path / "plain.jsonl", [rated(0, label=1)])
    base = read(log, save_as_model(plain, tmp_path / "base"), tmp_path / "b")

    assert found["prompt"] != rated(0)["prompt"] in found["prompt"]
    assert base.rows[0]["prompt"] == rated(0)["prompt"]
    assert base.counts["plain_text"] == "as_is"


# ---- two answers, one better ----


def duel(i, **columns):
    return {"question": f"Which tree is tall, {'xyz'[i]}?", **columns}


@pytest.mark.parametrize(
    ("names", "winner", "values", "better"),
    [
        (("output_1", "output_2"), "label", (1, 2, 2), "122"),
        (("response_a", "response_b"), "winner", ("A", "b", "tie"), "12"),
        (("left", "right"), None, (), ""),
        (("answer_left", "answer_right"), "preferred", ("left", "right", "both bad"), "12"),
        (("response_0", "response_1"), "better_response_id", (1, 0, 1), "212"),
        (("completion_a", "completion_b"), "winner", ("model_b", "model_a", "tie (bothbad)"), "21"),
        (("output_1", "output_2"), "preference", (1.1, 1.5, 2.0), "12"),
    ],
)
def test_the_winner_decides_which_answer_is_chosen(reads, names, winner, values, better):
    if winner is None:
        return
    answers = dict(zip(names, ("An oak, say.", "A moss, say."), strict=True))

    found = reads([duel(i, **answers, **{winner: value}) for i, value in enumerate(values)])

    assert [pair[1] for pair in found.pairs()] == ["An oak, say." if side == "1" else "A moss, say." for side in better]
    assert found.counts["rows_read"] == len(values)


def test_winners_by_the_names_of_models(reads):
    rows = [
        duel(0, answer_a="An oak.", answer_b="A moss.", model_a="red", model_b="blue", winner="blue"),
        duel(1, answer_a="An oak.", answer_b="A moss.", model_a="blue", model_b="red", winner="blue"),
    ]

    assert [pair[1] for pair in reads(rows).pairs()] == ["A moss.", "An oak."]
    for row in rows:
        del row["model_a"], row["model_b"]
    with pytest.raises(ValueError, match=r"its words aren't known: blue \(2\).*winners"):
        reads(rows)
    assert [pair[1] for pair in reads(rows, winners={"blue": "second"}).pairs()] == ["A moss.", "A moss."]


@pytest.mark.parametrize("values", [(1, 2), ("chosen", "rejected"), (0, 1), ("b", "b")])
def test_a_pair_with_a_label_that_nothing_reads_stops(reads, values):
    rows = [duel(i, chosen="An oak.", rejected="A moss.", label=value) for i, value in enumerate(values)]

    with pytest.raises(ValueError, match=r"label stands beside chosen and rejected.*\{label: none\}"):
        reads(rows)
    assert len(reads(rows, columns={"label": "none"}).pairs()) == 2


def test_mapped_sides_with_a_winner_are_decided_by_it(reads):
    columns = {"prompt": "question", "chosen": "one_a", "rejected": "one_b", "label": "pick"}
    rows = [duel(i, one_a="An oak.", one_b="A moss.", pick=value) for i, value in enumerate(("b", "a"))]

    assert [pair[1] for pair in reads(rows, columns=columns).pairs()] == ["A moss.", "An oak."]


def test_two_answers_without_a_winner_stop(reads):
    with pytest.raises(ValueError, match="no column says which is better"):
        reads([duel(0, answer_1="An oak.", answer_2="A moss.")])


def test_of_columns_for_each_answer_the_true_one_names_the_winner(reads):
    won = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    rows = [
        {"prompt": f"Which is tall, {i}?", "response_a": "An oak.", "response_b": "A moss.",
         "winner_model_a": a, "winner_model_b": b, "winner_tie": tie}
        for i, (a, b, tie) in enumerate(won)
    ]  # fmt: skip

    found = reads(rows)

    assert [pair[1] for pair in found.pairs()] == ["An oak.", "A moss."]
    assert found.counts["reject_reasons"] == {"tie": 1, "no_label": 1}


# ---- votes of raters ----


def vote(label, user, time, i=0, **columns):
    return rated(i, label=label, user=user, time=time, **columns)


def test_the_last_vote_of_a_rater_counts_and_a_double_click_is_one(reads):
    rows = [vote("up", "ann", 1), vote("up", "ann", 1), vote("down", "ann", 9), vote("up", "bob", 5, 1)]

    found = reads(rows)

    assert list(found.votes().values()) == [False, True]
    assert (found.counts["merged"], found.counts["superseded"]) == (1, 1)


def test_a_vote_taken_back_is_none(reads):
    rows = [vote("up", "ann", 1), vote(None, "ann", 2), vote("down", "bob", 1, 1), vote("removed", "bob", 3, 1)]

    found = reads([*rows, vote("up", "cid", 1, 2)])

    assert len(found.rows) == 1
    assert (
        found.counts["rows_read"]
        == 5
        == found.counts["rows_kept"] + found.counts["duplicates"] + found.counts["rejects"]
    )


def test_an_event_that_says_so_takes_a_vote_back(reads):
    rows = [
        rated(i, rating=1, event=event, user="ann") for i, event in ((0, "rate"), (0, "rating_removed"), (1, "rate"))
    ]

    assert len(reads(rows).rows) == 1


def test_times_decide_and_not_the_order_of_files(reads, tmp_path, chat_model):
    for name, row in (("a", vote("down", "ann", "2026-02-01T10:00")), ("b", vote("up", "ann", "2026-01-31T09:00Z"))):
        write(tmp_path / "days" / f"{name}.jsonl", [row])

    assert list(read(tmp_path / "days", chat_model, tmp_path / "out").votes().values()) == [False]


def test_an_unreadable_time_stops_where_it_matters(reads):
    rows = [vote("up", "ann", "1st of May"), vote("down", "ann", "2nd of May")]

    with pytest.raises(ValueError, match=r"time can't be read.*columns: \{time: none\}"):
        reads(rows)
    assert list(reads(rows, columns={"time": "none"}).votes().values()) == [False]


def test_dates_whose_order_is_unclear_stop_where_it_matters(reads):
    # 2 March, then 3 April; or 3 February, then 4 March: either way, but the stage doesn't guess which.
    rows = [vote("down", "ann", "03.04.2025"), vote("up", "ann", "02.03.2025")]

    with pytest.raises(ValueError, match="ingestion.date_order: day_first or month_first"):
        reads(rows)
    assert list(reads(rows, date_order="day_first").votes().values()) == [False]
    found = reads([*rows, rated(1, label="up", user="bob", time="13.04.2025")])
    assert list(found.votes().values()) == [False, True]
    assert "dates are read day first; date_order: day_first says so" in found.counts["understood"]


def test_values_of_mongodb_are_plain(reads):
    times = [{"$date": "2025-01-02T00:00:00Z"}, {"$date": {"$numberLong": "1735689600000"}}]

    found = reads([vote(label, "ann", time) for label, time in zip(["down", "up"], times, strict=True)])

    assert list(found.votes().values()) == [False]


def test_events_of_the_future_are_refused_if_asked_and_never_age_the_others(reads):
    days = [f"2025-03-{day:02}" for day in range(1, 29)]
    rows = [rated(i, label="up", time=day) for i, day in enumerate([*days, "2035-01-01"])]

    with pytest.raises(ValueError, match=r"of 2035-01-01 and those before it end on 2025-03-2[78].*ingestion.until"):
        reads(rows, half_life_days=30)
    found = reads(rows, half_life_days=30, until="2025-03-28")
    assert found.counts["reject_reasons"] == {"after_until": 1}
    assert found.rows[-1]["weight"] == 1.0
    with pytest.raises(ValueError, match="'soon'"):
        reads([*rows[:3], rated(3, label="up", time="soon")], half_life_days=30)
    with pytest.raises(ValueError, match="seconds since 1970"):
        reads([rated(i, label="up", time=i) for i in range(3)], half_life_days=30)


def test_an_event_in_two_exports_counts_once(reads, tmp_path, chat_model):
    event = rated(0, label="up", id="e1", time=4)
    write(tmp_path / "days" / "sun.jsonl", [rated(1, label="up", id="e0", time=3)])
    for day, rows in {"mon": [event], "tue": [event, rated(0, label="down", id="e2", time=5)]}.items():
        write(tmp_path / "days" / f"{day}.jsonl", rows)

    found = read(tmp_path / "days", chat_model, tmp_path / "out")

    assert found.counts["reject_reasons"] == {"contradictory_labels": 2}
    assert found.counts["merged"] == 1


def test_weights_add_up_and_the_heavier_side_wins(reads):
    rows = [rated(0, label="up", weight=2), rated(0, label="down", weight=30), rated(1, label=1, weight=1)]

    found = reads([*rows, rated(1, label=1, weight=9)])

    assert [(row["label"], row["weight"]) for row in found.rows] == [(False, 28.0), (True, 10.0)]
    assert json.loads(found.rows[0]["source"])["votes"] == {"agree": 30.0, "disagree": 2.0}


def test_votes_weigh_as_given_or_are_counted(reads):
    rows = [vote("up", user, 1) for user in "abcd"] + [vote("down", "e", 1)]

    assert reads(rows).rows[0]["weight"] == 1.0
    assert reads(rows, vote_weight="counted").rows[0]["weight"] == 3.0


@pytest.mark.parametrize("as_text", [False, True])
def test_several_votes_in_a_cell_are_so_many_votes(reads, as_text):
    cells = [
        [{"user": "ann", "vote": "up"}, {"user": "bob", "vote": "up"}, {"user": "cid", "vote": "down"}],
        [{"user": "ann", "vote": "down"}],
        ["up", "down"],
    ]
    rows = [rated(i, votes=json.dumps(cell) if as_text else cell, id=f"r{i}") for i, cell in enumerate(cells)]

    found = reads([*rows, rows[0]], vote_weight="counted", **({"columns": {"label": "votes"}} if as_text else {}))

    assert [(row["label"], row["weight"]) for row in found.rows] == [(True, 1.0), (False, 1.0)]
    assert found.counts["reject_reasons"] == {"outvoted": 1, "contradictory_labels": 2}
    assert found.counts["merged"] == 4


# A reference: what a stream of votes comes to, whatever its order and files, in a few lines.
CHANGES = st.lists(
    st.tuples(st.sampled_from("pq"), st.sampled_from("abc"), st.sampled_from(["up", "down", None])),
    min_size=1,
    max_size=14,
)


def resolved(votes):
    last = {}
    for time, (answer, rater, value) in enumerate(votes):
        last[answer, rater] = (time, value)
    labels = {}
    for answer in "pq":
        cast = [value for (about, _), (_, value) in last.items() if about == answer and value]
        if cast.count("up") != cast.count("down"):
            labels[answer] = cast.count("up") > cast.count("down")
    return labels


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(votes=CHANGES, data=st.data())
def test_streams_of_votes_come_to_what_a_small_reference_says(tmp_path_factory, chat_model, votes, data):
    rows = [
        {"prompt": "Which?", "completion": answer, "label": value, "user": rater, "time": time}
        for time, (answer, rater, value) in enumerate(votes)
    ]
    copies = data.draw(st.lists(st.sampled_from(rows), max_size=4))
    shuffled = data.draw(st.permutations([*rows, *copies]))
    files = [data.draw(st.sampled_from("xyz")) for _ in shuffled]
    folder = tmp_path_factory.mktemp("stream")
    for name in set(files):
        write(
            folder / "log" / f"{name}.jsonl", [row for row, file in zip(shuffled, files, strict=True) if file == name]
        )
    # One row that is always kept, since a log of which nothing is left stops the stage.
    write(folder / "log" / "w.jsonl", [{"prompt": "Else?", "completion": "k", "label": "up", "user": "k", "time": 0}])

    found = read(folder / "log", chat_model, folder / "read")

    labels = {answer: label for (question, answer), label in found.votes().items() if question == "Which?"}
    assert labels == resolved(votes)
    counts = found.counts
    assert counts["rows_read"] == len(shuffled) + 1
    assert counts["rows_read"] == counts["rows_kept"] + counts["merged"] + counts["superseded"] + counts["rejects"]


# ---- votes apart from answers ----


def test_votes_on_ids_without_answers_stop(reads):
    with pytest.raises(ValueError, match="table of votes without answers"):
        reads([{"message_id": f"m{i}", "user": "ann", "vote": "up"} for i in range(3)])
    with pytest.raises(ValueError, match="left"):
        reads("id,prompt,model_l,model_r,winner\n" + "".join(f"{i},{i % 2},5,6,left\n" for i in range(6)), "t.csv")


@pytest.mark.parametrize("key", ["message_id", "answer", "runId", "span_id"])
def test_votes_are_joined_with_answers_over_files(tmp_path, chat_model, key):
    answers = [{"id": f"x{i}", "question": f"Is {i} odd, yes or no?", "answer": f"Answer {i}."} for i in range(4)]
    votes = [{"id": f"x{3 - i}", key: f"x{i}", "user": "ann", "vote": "up" if i % 2 else "down"} for i in range(3)]
    write(tmp_path / "log" / "votes.jsonl", [*votes, {key: "x99", "user": "ann", "vote": "up"}])
    write(tmp_path / "log" / "zz_answers.jsonl", answers)

    found = read(tmp_path / "log", chat_model, tmp_path / "read")

    expected = {(a["question"], a["answer"]): bool(i % 2) for i, a in enumerate(answers) if i < 3}
    assert found.votes() == expected
    assert found.counts["reject_reasons"] == {"vote_without_answer": 1, "unrated": 1}
    assert found.counts["records"] == {"read": 8, "with_rows": 5, "part_of_others": 3}
    kept = read(tmp_path / "log", chat_model, tmp_path / "again", unrated="demonstrations")
    assert kept.counts["labels"] == {"desired": 1, "undesired": 2, "none": 1}


def test_an_id_of_several_answers_is_refused(reads):
    rows = [rated(i, id="same") for i in range(2)] + [rated(2, id="own")]

    found = reads([*rows, {"message_id": "same", "vote": "up"}, {"message_id": "own", "vote": "up"}])

    assert found.counts["reject_reasons"]["ambiguous_vote"] == 1
    assert found.counts["rows_kept"] == 1


# ---- turns and trees ----


def test_each_rated_turn_is_a_row_with_the_turns_before_it(reads):
    said = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "3"), ("user", "Bye")]
    marks = {1: {"thumbs": "up"}, 3: {"thumbs": "down"}}
    messages = [{"role": role, "content": text, **marks.get(i, {})} for i, (role, text) in enumerate(said)]

    found = reads([{"chat": "c", "messages": messages}])

    assert found.votes() == {("One?", "1"): True, ("Two?", "3"): False}
    assert turns(found.rows[1]) == said[:3]


def test_turns_in_rows_of_their_own_get_the_turns_before_them(reads):
    rows = [
        {"session_id": "s", "turn": i, "prompt": f"Question no {i}?", "completion": f"No {i}.", "label": i % 2}
        for i in (2, 0, 1)
    ]

    found = reads(rows)

    assert turns(found.rows[0]) == [
        ("user", "Question no 0?"),
        ("assistant", "No 0."),
        ("user", "Question no 1?"),
        ("assistant", "No 1."),
        ("user", "Question no 2?"),
    ]


TREE = [
    {"message_id": "q", "parent_id": None, "role": "prompter", "text": "Pick a stone."},
    {"message_id": "a", "parent_id": "q", "role": "assistant", "text": "Agate.", "rating": -1},
    {"message_id": "b", "parent_id": "q", "role": "assistant", "text": "Basalt.", "rating": 1},
    {"message_id": "r", "parent_id": "b", "role": "prompter", "text": "Why?"},
    {"message_id": "c", "parent_id": "r", "role": "assistant", "text": "It is dark.", "rating": 1},
    {"message_id": "d", "parent_id": "gone", "role": "assistant", "text": "Hm.", "rating": 1},
]


def test_a_tree_of_messages_is_walked_to_its_root(reads):
    found = reads(TREE[::-1])

    assert found.votes() == {
        ("Pick a stone.", "Agate."): False,
        ("Pick a stone.", "Basalt."): True,
        ("Why?", "It is dark."): True,
    }
    assert turns(found.rows[0]) == [("user", "Pick a stone."), ("assistant", "Basalt."), ("user", "Why?")]
    assert found.counts["reject_reasons"] == {"missing_turns": 1}


# ---- exports ----


def human(text):
    return {"role": "user", "content": text}


OPEN_WEBUI = [
    {
        "id": f"f{i}",
        "user_id": "u",
        "type": "rating",
        "data": {"rating": rating, "model_id": "m", "reason": "x", "details": {"rating": 7}},
        "meta": {"message_id": f"a{i}", "chat_id": f"c{i}"},
        "snapshot": {
            "chat": {
                "chat": {
                    "history": {
                        "messages": {
                            f"q{i}": {"id": f"q{i}", "parentId": None, "role": "user", "content": f"Name {'xyz'[i]}."},
                            f"a{i}": {
                                "id": f"a{i}",
                                "parentId": f"q{i}",
                                "role": "assistant",
                                "content": f"It is {i}.",
                            },
                            f"o{i}": {"id": f"o{i}", "parentId": f"q{i}", "role": "assistant", "content": "Other."},
                        }
                    }
                }
            }
        },
        "created_at": 1_760_000_000 + i,
    }
    for i, rating in enumerate((1, -1))
]
LANGFUSE = [
    {"id": "o0", "traceId": "t0", "type": "GENERATION", "input": [human("Name x.")], "output": "It is 0."},
    {
        "id": "o1",
        "traceId": "t1",
        "type": "GENERATION",
        "input": {"messages": [human("Name y.")]},
        "output": {"content": "It is 1."},
    },
    {"id": "s0", "traceId": "t0", "observationId": "o0", "name": "thumb", "value": 1, "dataType": "BOOLEAN"},
    {"id": "s1", "traceId": "t1", "observationId": None, "name": "thumb", "value": 0, "dataType": "BOOLEAN"},
]
LANGSMITH = [
    {"id": "r0", "run_type": "llm", "inputs": {"messages": [[{"kwargs": {"type": "human", "content": "Name x."}}]]},
     "outputs": {"generations": [[{"text": "It is 0.", "message": {"kwargs": {"type": "ai", "content": "It is 0."}}}]]},
     "feedback_stats": {"user": {"n": 3, "avg": 2 / 3}}},
    {"id": "r1", "run_type": "chain", "inputs": {"question": "Name y."}, "outputs": {"answer": "It is 1."}},
    {"id": "v", "run_id": "r1", "key": "user", "score": 0, "created_at": "2026-01-01"},
]  # fmt: skip
LIBRECHAT = [
    {
        "conversationId": f"c{i}",
        "messages": [
            {"messageId": f"q{i}", "parentMessageId": "00000000-0000-0000-0000-000000000000", "isCreatedByUser": True,
             "text": f"Name {'xy'[i]}."},
            {"messageId": f"a{i}", "parentMessageId": f"q{i}", "isCreatedByUser": False, "text": f"It is {i}.",
             "feedback": {"rating": rating}},
        ],
    }
    for i, rating in enumerate(("thumbsUp", "thumbsDown"))
]  # fmt: skip
OPENAI = [
    {"request": {"model": "m", "messages": [human("Name x.")]}, "feedback": "up",
     "response": {"choices": [{"message": {"role": "assistant", "content": "It is 0."}, "finish_reason": "stop"}]}},
    {"input": "Name y.", "feedback": "down",
     "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 1."}]}]},
]  # fmt: skip
SHAREGPT = [
    {
        "conversations": [{"from": "Human", "value": f"Name {'xy'[i]}."}, {"from": "GPT", "value": f"It is {i}."}],
        "vote": mark,
    }
    for i, mark in enumerate((1, -1))
]


@pytest.mark.parametrize("rows", [OPEN_WEBUI, LANGFUSE, LANGSMITH, LIBRECHAT, OPENAI, SHAREGPT])
def test_exports_are_read_by_their_shape(reads, rows):
    found = reads(rows)

    assert found.votes() == {("Name x.", "It is 0."): True, ("Name y.", "It is 1."): False}
    assert found.counts["rows_read"] == found.counts["rows_kept"] == 2
    assert found.counts["records"]["read"] == len(rows)


def test_several_scores_are_told_apart_by_name(reads):
    rows = [*LANGFUSE, {"id": "s2", "traceId": "t1", "observationId": "o1", "name": "length", "value": 17}]

    with pytest.raises(ValueError, match=r"several scores: length \(1\), thumb \(2\).*ingestion.score"):
        reads(rows)
    found = reads(rows, score="thumb")
    assert found.counts["unread"]["scores"] == {"length": 1}
    assert found.counts["rows_kept"] == 2


def test_unrated_answers_of_an_export_are_no_demonstrations(reads):
    found = reads([*LANGFUSE, {**LANGFUSE[0], "id": "o9", "traceId": "t9"}])

    assert found.counts["reject_reasons"] == {"unrated": 1}


WITH_CALLS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_tool_call_is_an_answer(reads):
    call = {"id": "k", "type": "function", "function": {"name": "rain", "arguments": '{"place": "Ulm"}'}}
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"request": {"messages": [human("Rain?")], "tools": tools}, "response": {"choices": [{"message": answer}]}}

    (found,) = reads([{**row, "label": True}], chat_template=WITH_CALLS).rows

    assert found["completion"] == 'rain {"place": "Ulm"}<|im_end|>'
    messages = json.loads(found["messages"])
    assert messages["tools"] == tools
    assert messages["completion"][0]["tool_calls"] == [call]


# ---- files ----


def test_every_unread_file_of_a_folder_is_named(tmp_path, chat_model):
    for name in ("mon.jsonl", "tue.log", "_wed.jsonl", ".thu.jsonl", "notes/fri.txt"):
        write(tmp_path / "log" / name, [rated(0, label=1)])

    found = read(tmp_path / "log", chat_model, tmp_path / "read")

    assert set(found.counts["unread"]["files"]) == {"tue.log", "_wed.jsonl", ".thu.jsonl", "notes/fri.txt"}
    assert found.counts["rows_read"] == 1


def test_zstandard_is_read(tmp_path, chat_model):
    (tmp_path / "log.jsonl.zst").write_bytes(
        pa.compress(json.dumps(rated(0, label=1)).encode(), codec="zstd", asbytes=True)
    )

    assert read(tmp_path / "log.jsonl.zst", chat_model, tmp_path / "read").counts["rows_kept"] == 1


def test_rows_below_a_key_are_found_and_said(reads):
    rows = [rated(i, label=i) for i in range(2)]

    found = reads(json.dumps({"page": 1, "result": {"items": rows}}, indent=1), "log.json")

    assert found.counts["rows_kept"] == 2
    assert found.counts["reading"]["log.json"]["form"] == "JSON, rows below result.items"


# ---- the split ----


def test_a_conversation_stands_on_one_side(reads):
    rows = [
        {"chat_id": chat, "prompt": f"{'abcdefgh'[chat]} and {turn}?", "completion": "So.", "label": turn % 2}
        for chat in range(8)
        for turn in range(4)
    ]

    found = reads(rows, test_share=0.4)

    sides = {}
    for row in found.rows:
        sides.setdefault(json.loads(row["source"])["chat_id"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "test"} == set().union(*sides.values())


def test_twins_and_numbers_stand_on_one_side(reads):
    texts = [f"Please sum up the ticket no {i} for me" for i in range(9)] + ["  please SUM up the ticket no 3 for me "]

    others = [f"What rhymes with {word}?" for word in ("sea", "sky", "red", "blue", "sand", "moon", "tree", "rain")]
    rows = [{"prompt": text, "completion": "Done.", "label": 1} for text in texts + others]

    found = reads(rows, test_share=0.5)

    sides = {text: row["split"] for row, text in zip(found.rows, texts + others, strict=True)}
    assert len({sides[text] for text in texts}) == 1
    assert found.counts["split_groups"]["groups"] == 1 + len(others)


EGGS = [{"prompt": f"How long do I boil {i} eggs?", "completion": f"{i} minutes.", "label": 1} for i in range(40)]


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_one_group_that_leaves_a_side_empty_is_warned_of_with_the_setting(reads, share, capsys):
    (warning,) = reads(EGGS, test_share=share).counts["warnings"]

    assert re.search(r"of 40 rows .*found none, and \w+ will stop; one group holds 100% .*twins: case \(or", warning)
    assert f"WARNING: {warning}" in capsys.readouterr().out


@pytest.mark.parametrize(("twins", "groups"), [("case", 40), ("exact", 41)])
def test_prompts_of_which_numbers_are_the_question_may_stand_on_both_sides(reads, twins, groups):
    again = {**EGGS[3], "prompt": " how long do I BOIL 3 eggs?"}

    found = reads([*EGGS, again], test_share=0.3, twins=twins)

    assert found.counts["split_groups"]["groups"] == groups
    assert min(found.counts["splits"]["train"], found.counts["splits"]["test"]) > 5


def test_what_a_split_by_exact_prompt_would_have_torn_is_counted(reads, capsys):
    others = [
        {"prompt": f"What rhymes with {'ab'[i % 2] * (i + 1)}?", "completion": "It.", "label": 1} for i in range(9)
    ]

    found = reads([*EGGS, *others], test_share=0.5)

    assert found.counts["split_groups"]["torn_by_prompt"] == {"groups": 1, "rows": 40}
    assert "a split by exact prompt would have had 1 groups of 40 rows on both sides" in capsys.readouterr().out
    assert reads(others, test_share=0.5).counts["split_groups"]["torn_by_prompt"] == {"groups": 0, "rows": 0}


DATED = [
    {"prompt": f"What rhymes with {word}?", "completion": "It.", "label": 1, "time": f"2025-03-0{day}T12:00:00Z"}
    for word, day in (("sea", 1), ("sky", 2), ("red", 3), ("sea", 4), ("sand", 3))
]


def test_what_came_later_is_held_out_and_what_was_asked_before_stays(reads):
    undated = {"prompt": "What rhymes with moon?", "completion": "It.", "label": 1}
    again = {**DATED[3], "completion": "That."}

    found = reads([*DATED[:3], again, DATED[4], undated], held_out_from="2025-03-03")

    held_out = [
        word
        for word in ("sea", "sky", "red", "sand", "moon")
        for row in found.rows
        if f" {word}?" in row["prompt"] and row["split"] == "test"
    ]
    assert held_out == ["red", "sand"]
    assert found.counts["splits"] == {"test": 2, "train": 4}


@pytest.mark.parametrize("day", ["2024-01-01", "2026-01-01"])
def test_a_day_that_leaves_a_side_empty_is_refused(reads, day):
    with pytest.raises(StageFailure, match=rf"held_out_from is {day}: expected rows before it and from then on"):
        reads(DATED[:3], held_out_from=day)


def test_one_log_of_eggs_is_let_through_where_nothing_is_to_be_measured(reads):
    counts = reads(EGGS, test_share=0).counts

    assert (counts["splits"], counts["warnings"]) == ({"train": 40}, [])


def test_a_column_can_be_held_out_whole(reads):
    rows = [rated(i, label=i % 2, annotator=f"r{i % 5}") for i in range(40)]

    found = reads(rows, test_share=0.4, group_by="annotator")

    sides = {(json.loads(row["source"])["annotator"], row["split"]) for row in found.rows}
    assert len(sides) == 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["Why?", "why? ", "How so?", "Is it so?"])), min_size=2)
)
def test_rows_that_are_added_move_no_row(tmp_path_factory, chat_model, rows):
    folder = tmp_path_factory.mktemp("split")
    logged = [
        {"chat": chat, "prompt": text, "completion": f"{chat}{i}", "label": 1} for i, (chat, text) in enumerate(rows)
    ]
    half = max(1, len(logged) // 2)

    before = read(write(folder / "a.jsonl", logged[:half]), chat_model, folder / "one", test_share=0.5)
    after = read(write(folder / "b.jsonl", logged), chat_model, folder / "two", test_share=0.5)

    sides = {row["row_id"]: row["split"] for row in after.rows}
    assert {row["row_id"]: row["split"] for row in before.rows}.items() <= sides.items()
    prompts = {(json.loads(row["messages"])["prompt"].strip().casefold(), row["split"]) for row in after.rows}
    assert len(prompts) == len({prompt for prompt, _ in prompts})


# ---- how exports pack what they hold ----


def langfuse(scores, **trace):
    question, answer = (
        [{"role": "user", "content": "Name a tern."}],
        {"role": "assistant", "content": "An arctic tern."},
    )
    return [{"id": "t", "sessionId": "s", "input": question, "output": answer, **trace}, *scores]


def test_of_a_category_the_word_is_the_vote_and_not_its_number(reads):
    score = {"id": "s", "traceId": "t", "name": "thumb", "dataType": "CATEGORICAL"}

    assert list(reads(langfuse([{**score, "value": 0, "stringValue": "good"}])).votes().values()) == [True]
    assert list(reads(langfuse([{**score, "value": 1, "stringValue": "bad"}])).votes().values()) == [False]


def test_what_stands_beside_a_question_in_an_export_stops(reads):
    rows = [
        {
            "id": str(i),
            "run_type": "chain",
            "inputs": {"question": "Which of these is a tern?", "context": f"Page {i} of the guide."},
            "outputs": {"output": f"The bird of page {i}."},
            "feedback_stats": {"thumb": {"n": 1, "avg": float(i)}},
        }
        for i in range(2)
    ]

    with pytest.raises(ValueError, match=r"prompt_parts: \[inputs.context, .*\{inputs.context: none\}"):
        reads(rows)
    left_out = reads(rows, columns={"inputs.context": "none"})
    assert [question for question, _ in left_out.votes()] == ["Which of these is a tern?"] * 2
    found = reads(rows, prompt_parts=["inputs.context", "inputs.question"])
    assert [turns(row)[0][1] for row in found.rows] == [
        f"Page {i} of the guide.\n\nWhich of these is a tern?" for i in range(2)
    ]


def test_questions_and_answers_packed_as_json_into_cells_are_unpacked(reads):
    packed = {name: json.dumps(value) for name, value in langfuse([])[0].items() if name in ("input", "output")}
    score = {"id": "s", "traceId": "t", "name": "thumb", "value": 0}

    assert reads(langfuse([score], **packed)).votes() == {("Name a tern.", "An arctic tern."): False}


def test_an_answer_that_is_json_stays_as_the_model_wrote_it(reads):
    score = {"id": "s", "traceId": "t", "name": "thumb", "value": 1}

    found = reads(langfuse([score], output='{"answer": "An arctic tern."}'))

    assert found.votes() == {("Name a tern.", '{"answer": "An arctic tern."}'): True}


def test_lists_of_questions_and_answers_are_turns(reads):
    pair = {"prompt": '["Name a tern."]', "response_a": '["A rook."]', "response_b": '["An arctic tern."]'}
    two = {"prompt": ["Name a tern.", "Another?"], "response": ["A rook.", "A sandwich tern."], "label": 1}

    assert reads([{**pair, "winner": "b"}]).pairs() == [("Name a tern.", "An arctic tern.", "A rook.")]
    assert turns(reads([two]).rows[0]) == [("user", "Name a tern."), ("assistant", "A rook."), ("user", "Another?")]
    with pytest.raises(StageFailure, match="an answer in completion to each turn"):
        reads([{**two, "response": ["A rook."]}])


def test_messages_below_each_other_are_a_conversation(reads):
    answer = {"messageId": "b", "sender": "GPT", "text": "A rook.", "feedback": {"rating": "thumbsDown"}}
    question = {
        "messageId": "a",
        "sender": "User",
        "isCreatedByUser": True,
        "text": "Name a tern.",
        "children": [answer],
    }

    assert reads(json.dumps({"conversationId": "c", "messagesTree": [question]}), name="chat.json").votes() == {
        ("Name a tern.", "A rook."): False
    }


def test_answers_that_nobody_voted_on_cost_no_share(reads):
    rows = [trace for i in range(9) for trace in langfuse([], id=str(i), output=f"Bird {i}.")]

    found = reads([*rows, {"id": "s", "traceId": "3", "name": "thumb", "value": 1}], max_reject_share=0.1)

    assert found.votes() == {("Name a tern.", "Bird 3."): True}
    assert found.counts["reject_reasons"] == {"unrated": 8}


def test_scores_that_say_the_opposite_of_a_pair_stop(reads):
    pair = {"prompt": "Name a tern.", "chosen": "A rook.", "rejected": "An arctic tern."}
    rows = [{**pair, "score_chosen": 2.5, "score_rejected": 7.0}]

    with pytest.raises(ValueError, match=r"in 1 pairs score_rejected is larger .*\{score_chosen: none\}"):
        reads(rows)
    assert reads(rows, columns={"score_chosen": "none"}).pairs() == [("Name a tern.", "A rook.", "An arctic tern.")]


@pytest.mark.parametrize("name", ["log.json", "log.jsonl"])
@pytest.mark.parametrize("pages", [[4], [3, 1], [1, 1, 2]])
@pytest.mark.parametrize("indent", [None, 1])
def test_pages_of_an_export_one_behind_the_other_are_read_whole(reads, name, pages, indent):
    rows = iter([rated(i, label=i % 2) for i in range(4)])
    text = "\n".join(json.dumps([next(rows) for _ in range(size)], indent=indent) for size in pages)

    assert len(reads(text, name=name).votes()) == 4
    with pytest.raises(ValueError, match="expected JSON objects, found a fault"):
        reads(text + " oops", name=name)


def test_objects_over_several_lines_are_rows(reads):
    rows = [rated(i, label=i % 2) for i in range(3)]

    assert len(reads("\n".join(json.dumps(row, indent=2) for row in rows)).votes()) == 3


def test_chats_give_the_answers_of_votes_that_stand_elsewhere(reads):
    asked = {"id": "a", "parentId": None, "role": "user", "content": "Name a tern."}
    answers = [
        {"id": name, "parentId": "a", "role": "assistant", "content": text}
        for name, text in (("b", "A rook."), ("c", "A common tern."))
    ]
    chat = {"id": "x", "chat": {"history": {"messages": {node["id"]: node for node in (asked, *answers)}}}}
    vote = {"id": "f", "user_id": "u", "data": {"rating": -1}, "meta": {"chat_id": "x", "message_id": "b"}}

    found = reads([chat, vote])

    assert found.votes() == {("Name a tern.", "A rook."): False}
    assert found.counts["reject_reasons"] == {"unrated": 1}


def test_parts_of_a_message_may_hold_their_text_below_a_value(reads):
    rows = [
        {"messageId": "a", "conversationId": "c", "isCreatedByUser": "True", "text": "Name a tern."},
        {"messageId": "b", "conversationId": "c", "parentMessageId": "a", "isCreatedByUser": "False"},
    ]
    rows[1] |= {"content": [{"type": "text", "text": {"value": "A rook."}}], "feedback": {"rating": "thumbsDown"}}

    assert reads(rows).votes() == {("Name a tern.", "A rook."): False}


# ---- answers that nothing reads, and votes on one of several ----


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        ({"response_win": "A wren.", "response_lose": "A brick."}, "chosen: response_win, rejected: response_lose"),
        ({"our_answer": "A wren it is."}, "columns: {completion: our_answer}"),
        ({"candidates": ["A wren.", "A brick."], "selected_index": 0}, "neither ranks nor scores beside them"),
    ],
)
def test_answers_under_unknown_names_make_no_prompts_alone(reads, columns, remedy):
    rows = [{"prompt": f"Which bird is number {i}?", **columns} for i in range(3)]

    with pytest.raises(ValueError, match=re.escape(remedy)):
        reads(rows)
    found = reads(rows, columns=dict.fromkeys(columns, "none"))
    assert found.counts["layouts"] == {"prompts": 3}


def test_votes_under_the_names_of_raters_stop(reads):
    rows = [rated(i, annotator_1=i % 2, annotator_2=i % 3 > 0) for i in range(6)]

    with pytest.raises(ValueError, match=r"annotator_1 may be a vote .*\n.*annotator_2 may be a vote"):
        reads(rows)


def said_twice(**columns):
    turns = [("user", "Who?"), ("assistant", "A wren."), ("user", "And?"), ("assistant", "An owl.")]
    return {"messages": [{"role": role, "content": text} for role, text in turns], **columns}


@pytest.mark.parametrize("columns", [{"vote": [1, 1]}, {"rated_turn": 1, "vote": "up"}, {"turn": 0, "vote": "up"}])
def test_a_vote_on_another_answer_than_the_last_is_refused(reads, columns):
    whole = said_twice(turn=2, vote="up")

    found = reads([said_twice(**columns), whole | {"messages": whole["messages"][:2], "turn": 1}])

    assert found.counts["reject_reasons"] == {"unknown_label": 1}
    assert list(found.votes()) == [("Who?", "A wren.")]


def test_a_call_and_what_follows_it_are_one_answer(reads):
    call = {"id": "k", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calls = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "k", "content": "3"},
    ]
    turns = [{"role": "user", "content": "Who?"}, *calls, *calls, {"role": "assistant", "content": "A wren."}]

    # It is read, and this model's template has no place for calls.
    with pytest.raises(StageFailure, match="text_not_rendered"):
        reads([{"messages": turns, "turn": 1, "vote": "up"}])


def test_votes_on_messages_of_chatgpt_stand_in_a_file_of_their_own(reads):
    def node(name, parent, role, text):
        message = {"id": name, "author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
        return {"id": name, "parent": parent, "message": message if role else None, "children": []}

    nodes = [node("r", None, None, ""), node("q", "r", "user", "Who?"), node("a", "q", "assistant", "A wren.")]
    chat = {"title": "Birds", "mapping": {one["id"]: one for one in nodes}, "conversation_id": "c"}

    found = reads([chat, {"id": "a", "conversation_id": "c", "user_id": "u", "rating": "thumbs_down"}])

    assert found.votes() == {("Who?", "A wren."): False}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"status": ["accepted", "rejected"]}, "status may be a vote by its few values"),
        ({"feedback_reason": ["too long", "wrong, all of it"]}, "feedback_reason comes with votes"),
        ({"rating_comment": ["Well done, thanks.", "Not at all."]}, "rating_comment comes with votes"),
    ],
)
def test_what_tells_of_votes_makes_no_demonstrations(reads, columns, problem):
    ((name, values),) = columns.items()
    rows = [rated(i, **{name: values[i % 2]}) for i in range(6)]

    with pytest.raises(ValueError, match=problem):
        reads(rows)
    assert reads(rows, columns={name: "none"}).counts["layouts"] == {"demonstrations": 6}
    assert reads([{**row, "thumb": "up"} for row in rows]).counts["layouts"] == {"unpaired": 6}


@pytest.mark.parametrize("columns", [{}, {"turn": 1}])
def test_a_vote_on_a_whole_conversation_is_refused_and_told_why(reads, columns):
    chats = [{**said_twice(), "conversation_id": f"c{i}"} for i in range(2)]
    votes = [{"conversation_id": f"c{i}", "vote": "up", **columns} for i in range(2)]

    with pytest.raises(StageFailure, match=r"vote_without_answer \(2\)"):
        reads([*chats, *votes])
