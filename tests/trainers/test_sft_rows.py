"""Rows to imitate: texts, conversations and prompts with completions in, token ids out."""

import pytest
from datasets import Dataset

from stages.trainers.sft.rows import SFTRowReader
from tests.trainers.tiny import tiny_tokenizer

CHAT = [{"role": "user", "content": "what is"}, {"role": "assistant", "content": "fine"}]


def read(rows, *, max_length=64, **settings):
    reader = SFTRowReader(settings.pop("tokenizer", tiny_tokenizer()), max_length, **settings)
    return reader.read(Dataset.from_list(rows), name="train_dataset")


def words(row):
    return " ".join(tiny_tokenizer().convert_ids_to_tokens(row["input_ids"]))


def test_a_text_is_encoded_and_ended():
    rows, left_out = read([{"text": "what is"}, {"text": "a sea </s>"}], text_field="text")

    assert [words(row) for row in rows] == ["what is </s>", "a sea </s>"]
    assert not left_out.counts


def test_a_text_that_is_cut_is_not_ended():
    rows, _ = read([{"text": "what is the sky"}, {"text": "a sea"}], text_field="text", max_length=3)

    assert [words(row) for row in rows] == ["what is the", "a sea </s>"]


def test_a_formatting_function_gives_a_text_per_row_of_a_batch():
    rows, _ = read(
        [{"q": "what", "a": "fine"}, {"q": "a", "a": "sea"}],
        formatting_func=lambda batch: [f"{q} {a}" for q, a in zip(batch["q"], batch["a"], strict=True)],
        appends_eos=False,
        batch_size=0,
    )

    assert [words(row) for row in rows] == ["what fine", "a sea"]


@pytest.mark.parametrize("gives", ["one text", [3]])
def test_a_formatting_function_that_gives_no_list_of_texts_is_refused(gives):
    with pytest.raises(ValueError, match="expected a list of texts for the rows of a batch, found"):
        read([{"a": "x"}], formatting_func=lambda _: gives)


def test_an_empty_text_is_left_out_and_counted():
    rows, left_out = read([{"text": "  "}, {"text": "fine"}], text_field="text")

    assert len(rows) == 1
    assert left_out.counts == {"empty_text": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "what is"}, {"from": "gpt", "value": "fine"}]},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": "what is", "completion": "fine"},
        {"prompt": "what is", "chosen": "fine", "rejected": "bad"},
    ],
    ids=" ".join,
)
def test_conversations_and_instructions_go_through_the_chat_template(row):
    rows, _ = read([row])

    assert words(rows[0]) == "<s> <user> what is <assistant> fine </s>"
    assert rows[0]["prompt_length"] == 5


def test_a_completion_keeps_its_prompt_where_it_alone_is_learned():
    long = {"prompt": "what is the sky", "completion": "fine"}

    whole, _ = read([long], max_length=6)
    rows, left_out = read([long, {"prompt": "what", "completion": "fine good"}], max_length=6, learns="completions")

    assert words(whole[0]) == "<s> <user> what is the sky"
    assert [words(row) for row in rows] == ["<s> <user> what <assistant> fine good"]
    assert left_out.counts == {"no_room_for_completion": 1}


def test_what_people_disliked_is_not_imitated():
    raw, raw_counts = read([{"prompt": "what", "completion": c, "label": c == "fine"} for c in ("fine", "bad", "good")])
    encoded, counts = read([{"input_ids": [7, 8], "prompt_length": 1, "label": label} for label in (True, False, None)])

    assert (len(raw), raw_counts.counts) == (1, {"undesired": 2})
    assert (len(encoded), counts.counts) == (2, {"undesired": 1})
    assert encoded.column_names == ["input_ids", "prompt_length"]


def test_a_conversation_keeps_its_weight():
    rows, _ = read([{"messages": CHAT, "weight": 0.5}, {"messages": CHAT, "weight": 2.0}])

    assert rows["weight"][:] == [0.5, 2.0]


def test_encoded_rows_keep_further_columns_if_asked_to():
    rows, _ = read([{"input_ids": [7], "mine": 3}], keeps_columns=True)

    assert rows.column_names == ["input_ids", "mine"]


def test_rows_are_encoded_by_several_processes_alike():
    texts = [{"text": f"what is {word}"} for word in ("sky", "sea", "red", "fine")]

    one, _ = read(texts, text_field="text")
    two, _ = read(texts, text_field="text", num_proc=2)

    assert one["input_ids"][:] == two["input_ids"][:]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"question": "x"}], {}, "expected input_ids, messages, or prompt and completion, found columns question"),
        ([{"a": "x"}], {"text_field": "text"}, "expected texts in a column 'text', found columns a"),
        ([{"chosen_input_ids": [1]}], {}, "single rows with a column input_ids, found chosen_input_ids"),
        ([{"messages": [{"content": "x"}]}], {}, "row 0: expected each message of messages with a role"),
        ([{"prompt": "what", "completion": " "}], {}, "found none left .1 empty_completion"),
        ([{"messages": CHAT[:1]}], {}, "found none left .1 empty_completion"),
        ([{"text": "x"}], {"text_field": "text", "tokenizer": None}, "a tokenizer to encode raw rows with"),
        ([], {}, "expected rows, found none"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:24],
)
def test_says_what_is_wrong_with_rows(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        read(rows, **settings)


def test_asks_for_a_chat_template_where_a_conversation_needs_one():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None

    with pytest.raises(ValueError, match="row 0: .*chat template"):
        read([{"prompt": "what", "completion": "fine"}], tokenizer=tokenizer)
