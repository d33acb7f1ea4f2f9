"""Conversions of logged rows beside TRL 0.21's, the differences named."""

import json

import pytest
from transformers import AutoTokenizer

from stages.text.chat_template import ChatRenderer
from stages.text.layouts import extract_prompt, read_feedback
from tests.material import SHARED, needs_shared

pytestmark = needs_shared


@pytest.fixture(scope="module")
def conversions():
    return json.loads((SHARED / "parity/out/bco/conversions.json").read_text())


@pytest.fixture(scope="module")
def renderer(conversions):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "parity/assets/tok", clean_up_tokenization_spaces=False)
    return ChatRenderer(tokenizer, template=conversions["params"]["chat_template"])


def rendered(renderer, row):
    feedback = read_feedback(row)
    text = renderer.render(feedback.prompt, feedback.completions)
    return {"prompt": text.prompt, "completion": text.completions[0], "label": feedback.label}


def test_conversation(conversions, renderer):
    case = conversions["values"]["conv"]

    assert rendered(renderer, case["input"]) == case["output"]


def test_an_open_turn_is_continued_where_the_peer_closes_it_and_begins_another(conversions, renderer):
    case = conversions["values"]["conv_continue"]

    found = rendered(renderer, case["input"])

    assert case["output"]["completion"] == "</s><|assistant|>tial</s>"
    assert found == {**case["output"], "completion": "tial</s>"}


@pytest.mark.parametrize("name", ["space_boundary", "no_common_prefix_plain", "chosen_is_prefix", "messages"])
def test_implicit_prompt(conversions, name):
    case = conversions["values"][f"extract/{name}"]

    found = dict(zip(("prompt", "chosen", "rejected"), extract_prompt(**case["input"]), strict=True))

    assert found == case["output"]


def test_texts_that_share_nothing_stay_whole_where_the_peer_cuts_one(conversions):
    case = conversions["values"]["extract/no_common_prefix"]

    assert case["output"] == {"prompt": "A b", "chosen": " ", "rejected": "d"}
    assert extract_prompt(**case["input"]) == ("", "A b ", "C d")


def test_identical_completions_are_refused_where_the_peer_trains_on_them(conversions):
    with pytest.raises(ValueError, match="identical_pair"):
        read_feedback(conversions["values"]["extract/identical"]["input"])


def test_an_explicit_prompt_is_left_alone(conversions):
    case = conversions["values"]["extract/explicit"]

    found = read_feedback(case["input"])

    assert {"prompt": found.prompt, "chosen": found.completions[0], "rejected": found.completions[1]} == case["output"]


def test_pairs_give_the_same_rows_as_the_peer_with_both_of_a_pair_together(conversions):
    case = conversions["values"]["unpair"]

    found = [
        {"prompt": feedback.prompt, "completion": completion, "label": label}
        for feedback in map(read_feedback, case["input"])
        for completion, label in zip(feedback.completions, (True, False), strict=True)
    ]

    # TRL puts all chosen before all rejected, which gives batches of one class.
    assert sorted(found, key=lambda row: not row["label"]) == case["output"]
    assert [row["label"] for row in found] == [True, False] * len(case["input"])
