"""Layouts: every way in which logs say the same thing comes out the same."""

import json

import numpy as np
import pytest

from stages.text.layouts import Feedback, each_answer, extract_prompt, from_first_answer, read_feedback
from stages.text.reasons import RejectedRowError

ASKED = [{"role": "user", "content": "q"}]
ANSWERED = [{"role": "assistant", "content": "a"}]


def reason_of(row, **options):
    with pytest.raises(RejectedRowError) as caught:
        read_feedback(row, **options)
    return caught.value.reason


def test_unpaired_row_keeps_other_columns_as_source():
    found = read_feedback({"prompt": "p", "completion": "c", "label": "up", "topic": "t", "id": 2**70})

    assert found == Feedback("unpaired", "p", ("c",), True, (True,), 1.0, None, {"topic": "t", "id": 2**70})


def test_columns_are_found_under_the_names_of_the_log():
    columns = {"prompt": "completion", "completion": "answer", "label": "vote"}

    found = read_feedback({"completion": "p", "answer": "c", "vote": 0, "prompt": "other", "label": 7}, columns=columns)

    assert (found.prompt, found.completions, found.label) == ("p", ("c",), False)
    assert found.source == {"prompt": "other", "label": 7}


def test_pair_with_prompt():
    found = read_feedback({"prompt": "p", "chosen": "a", "rejected": "b", "label": 3})

    assert (found.layout, found.prompt, found.completions, found.label) == ("pairs", "p", ("a", "b"), None)
    assert found.source == {"label": 3}


def test_pair_of_conversations_with_their_prompt_inside():
    rejected = [*ASKED, {"role": "assistant", "content": "b"}]

    implicit = read_feedback({"chosen": ASKED + ANSWERED, "rejected": rejected})
    repeated = read_feedback(
        {"prompt": "q", "chosen": ASKED + ANSWERED, "rejected": rejected, "messages": ASKED + ANSWERED}
    )

    assert (implicit.prompt, implicit.completions) == (ASKED, (ANSWERED, rejected[1:]))
    assert (repeated.prompt, repeated.completions) == (implicit.prompt, implicit.completions)


def test_pair_of_answers_to_a_conversation():
    row = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}

    assert reason_of(row) == "bad_messages"
    found = read_feedback({**row, "rejected": {"from": "gpt", "value": "b"}})
    assert (found.prompt, found.completions[0]) == (ASKED, ANSWERED)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("A b", "C d", ("", "A b", "C d")),
        ("A b ", "C d", ("", "A b ", "C d")),
        ("The sky", "The sky is green.", ("The sk", "y", "y is green.")),
    ],
)
def test_the_implicit_prompt_is_what_both_begin_with(chosen, rejected, expected):
    assert extract_prompt(chosen, rejected) == expected


def test_a_pair_that_shares_nothing_has_no_prompt():
    assert reason_of({"chosen": "A b", "rejected": "C d"}) == "empty_prompt"


def test_demonstration_has_no_label_column():
    assert read_feedback({"prompt": "p", "completion": "c"}).layout == "demonstrations"
    assert reason_of({"prompt": "p", "completion": "c", "label": None}) == "no_label"
    assert read_feedback({"prompt": "p", "completion": "c", "label": None}, layout="demonstrations").label is None


def test_empty_cells_of_tables_are_no_columns():
    row = {"prompt": "p", "completion": None, "chosen": None, "rejected": float("nan"), "label": np.nan}

    assert read_feedback(row).layout == "prompts"
    assert reason_of({**row, "label": True}) == "empty_completion"


def test_messages_are_split_before_the_last_answer():
    turns = [{"role": "system", "content": "s"}, *ASKED, *ANSWERED, *ASKED, *ANSWERED]

    found = read_feedback({"messages": turns, "label": False})

    assert (found.prompt, found.completions, found.label) == (turns[:4], (ANSWERED,), False)
    assert read_feedback({"messages": turns[:4]}).layout == "prompts"
    assert read_feedback({"messages": turns}).layout == "demonstrations"
    assert reason_of({"messages": turns[:4], "label": True}) == "empty_completion"


def test_sharegpt_is_read_as_messages():
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s", "label": 1}

    found = read_feedback(row)

    assert found.prompt == [{"role": "system", "content": "s"}, *ASKED]
    assert found.completions == (ANSWERED,)
    assert reason_of({"conversations": [{"from": "cat", "value": "q"}], "label": 1}) == "bad_messages"


def test_messages_as_text_and_as_arrays_are_read_too():
    assert read_feedback({"messages": json.dumps(ASKED + ANSWERED), "label": "up"}).completions == (ANSWERED,)
    assert read_feedback({"messages": np.array(ASKED + ANSWERED), "label": np.bool_(True)}).completions == (ANSWERED,)


def test_nulls_that_tables_put_into_messages_are_dropped():
    found = read_feedback({"prompt": [{"role": "user", "content": "q", "name": None}], "completion": "a", "label": 1})

    assert (found.prompt, found.completions) == (ASKED, (ANSWERED,))


def test_text_and_messages_mix():
    found = read_feedback({"prompt": "q", "completion": ANSWERED, "label": 1})

    assert (found.prompt, found.completions) == (ASKED, (ANSWERED,))


def test_parts_of_content_are_joined_if_they_are_text():
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]
    image = {"type": "image", "url": "x"}

    assert read_feedback({"messages": [{"role": "user", "content": parts}]}).prompt[0]["content"] == "q?"
    assert reason_of({"messages": [{"role": "user", "content": [*parts, image]}]}) == "unsupported_content"


def test_tool_calls_need_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}

    found = read_feedback({"prompt": ASKED, "completion": [call], "label": 1, "tools": [{"name": "f"}]})

    assert found.completions[0][0]["content"] == ""
    assert found.tools == [{"name": "f"}]


def test_answers_that_were_cut_off_are_not_complete():
    assert read_feedback({"prompt": "p", "completion": "c", "finish_reason": "length"}).are_complete == (False,)
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "rejected_finish_reason": "max_tokens"}
    assert read_feedback(pair).are_complete == (True, False)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), "heavy", True, [1], 1e-60, 1e60])
def test_weights_are_positive_and_finite(weight):
    assert reason_of({"prompt": "p", "completion": "c", "weight": weight}) == "bad_weight"


def test_weights_are_kept():
    assert read_feedback({"prompt": "p", "completion": "c", "weight": "2.5"}).weight == 2.5
    assert read_feedback({"prompt": "p", "completion": "c", "weight": None}).weight == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "unknown_layout"),
        ({"question": "p", "answer": "c"}, "unknown_layout"),
        ({"prompt": True, "completion": "c", "label": 1}, "not_text"),
        ({"prompt": "p", "completion": 3, "label": 1}, "not_text"),
        ({"prompt": " \n", "completion": "c", "label": 1}, "empty_prompt"),
        ({"prompt": "p", "completion": " \t", "label": 1}, "empty_completion"),
        ({"prompt": "p", "completion": "", "label": 1}, "empty_completion"),
        ({"prompt": "p", "completion": [{"role": "assistant", "content": " "}], "label": 1}, "empty_completion"),
        ({"prompt": ASKED, "completion": ASKED, "label": 1}, "completion_not_assistant"),
        ({"prompt": [], "completion": "c", "label": 1}, "bad_messages"),
        ({"prompt": [{"content": "q"}], "completion": "c", "label": 1}, "bad_messages"),
        ({"prompt": ["q"], "completion": "c", "label": 1}, "bad_messages"),
        ({"prompt": ASKED * 1001, "completion": "c", "label": 1}, "too_many_messages"),
        ({"prompt": "p", "chosen": "a"}, "half_pair"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "identical_pair"),
        ({"prompt": "p", "completion": "c", "label": 1, "tools": "hammer"}, "bad_tools"),
        ({"messages": "no JSON", "label": 1}, "bad_messages"),
    ],
)
def test_unusable_rows_are_refused_with_their_reason(row, reason):
    assert reason_of(row) == reason


def test_a_forced_layout_is_required():
    assert reason_of({"prompt": "p", "completion": "c", "label": 1}, layout="pairs") == "half_pair"
    assert read_feedback({"prompt": "p", "completion": "c", "label": 1}, layout="prompts").completions == ()


def test_identity_follows_from_what_was_given():
    plain = read_feedback({"prompt": "p", "completion": "c", "label": 1})
    same = read_feedback({"prompt": "p", "completion": "c", "label": 0, "topic": "t"})
    with_tools = read_feedback({"prompt": "p", "completion": "c", "label": 0, "tools": [{"name": "f"}]})

    assert plain.row_id("c") == same.row_id("c")
    assert plain.prompt_id() == same.prompt_id() != with_tools.prompt_id()
    assert plain.pair_id() is None


@pytest.mark.parametrize("speaker", ["assistant", "Assistant", "GPT", "model", " bot "])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_an_assistant_by_any_name_answers(speaker, keys):
    turns = [dict(zip(keys, turn, strict=True)) for turn in (("HUMAN", "Name a fruit."), (speaker, "Apple."))]

    found = read_feedback({"messages": turns})

    assert found.prompt == [{"role": "user", "content": "Name a fruit."}]
    assert found.completions == ([{"role": "assistant", "content": "Apple."}],)


@pytest.mark.parametrize("weight", [-1, True, "1", float("inf")])
def test_the_weight_of_a_message_is_a_number_from_0(weight):
    answer = {"role": "assistant", "content": "a", "weight": weight}

    with pytest.raises(RejectedRowError, match="bad_weight: expected the weight of a message as a finite number"):
        read_feedback({"messages": [{"role": "user", "content": "q"}, answer]})


def test_a_demonstrated_conversation_is_learned_from_its_first_answer_and_a_voted_one_from_its_last():
    turns = [{"role": role, "content": role[0] + str(at)} for at in (1, 2) for role in ("user", "assistant")]
    greeted = [{"role": "assistant", "content": "a0"}, *turns]

    demonstration = from_first_answer(read_feedback({"messages": greeted}))
    voted = from_first_answer(read_feedback({"messages": turns, "label": True}))

    assert [message["content"] for message in demonstration.prompt] == ["a0", "u1"]
    assert [message["content"] for message in demonstration.completions[0]] == ["a1", "u2", "a2"]
    assert [message["content"] for message in voted.completions[0]] == ["a2"]


def test_each_answer_of_a_demonstration_is_one_with_what_was_said_before_it():
    turns = [{"role": role, "content": role[0] + str(at)} for at in (1, 2, 3) for role in ("user", "assistant")]
    turns[3]["weight"] = 0
    turns.insert(2, {"role": "assistant", "content": "more"})

    found = each_answer(read_feedback({"messages": turns, "finish_reason": "length"}))

    said = [["".join(turn["content"] for turn in text) for text in (one.prompt, one.completions[0])] for one in found]
    assert said == [["u1", "a1more"], ["u1a1moreu2a2u3", "a3"]]
    assert [one.are_complete for one in found] == [(True,), (False,)]


@pytest.mark.parametrize("row", [{"prompt": "p", "completion": "c"}, {"messages": ASKED + ANSWERED, "label": True}])
def test_what_has_one_answer_or_a_vote_stays_one_row(row):
    feedback = read_feedback(row)

    assert each_answer(feedback) == [feedback]
