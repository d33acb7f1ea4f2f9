"""Batches with labels: what is padding, what is a prompt, what is an answer."""

import pytest

from stages.losses.sft import IGNORED
from stages.rows.label_collation import LabelCollator
from stages.trainers.sft.completion_only import DataCollatorForCompletionOnlyLM
from tests.trainers.tiny import tiny_tokenizer

I = IGNORED  # noqa: E741 - short, so that rows of labels line up
USER, ASSISTANT = 4, 5
EOS = 2


def labels(ids, *, instruction="<user>"):
    collator = DataCollatorForCompletionOnlyLM("<assistant>", instruction, tiny_tokenizer())
    return collator([{"input_ids": ids}])["labels"][0].tolist()


def test_padding_is_what_a_row_lacks_and_not_what_its_ids_say():
    batch = LabelCollator(pad_id=EOS)([{"input_ids": [7, 8, EOS]}, {"input_ids": [9]}])

    assert batch["input_ids"].tolist() == [[7, 8, EOS], [9, EOS, EOS]]
    assert batch["labels"].tolist() == [[7, 8, EOS], [9, I, I]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_prompt_is_learned_only_if_asked_for():
    rows = [{"input_ids": [7, 8, 9], "prompt_length": 2}]

    assert LabelCollator(pad_id=0)(rows)["labels"].tolist() == [[I, I, 9]]
    assert LabelCollator(pad_id=0, learns_prompts=True)(rows)["labels"].tolist() == [[7, 8, 9]]


def test_labels_of_a_row_have_the_last_word():
    rows = [{"input_ids": [7, 8, 9], "labels": [I, 8, I], "prompt_length": 2, "weight": 0.5}]

    batch = LabelCollator(pad_id=0)(rows)

    assert batch["labels"].tolist() == [[I, 8, I]]
    assert batch["weight"].tolist() == [0.5]


def test_rows_whose_documents_stay_apart_can_be_laid_end_to_end():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [I, 6, I], "position_ids": [0, 1, 0]},
        {"input_ids": [8, 9], "labels": [I, 9], "position_ids": [0, 1]},
    ]

    batch = LabelCollator(pad_id=0, flattens=True)(rows)

    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[I, 6, I, I, 9]],
        "position_ids": [[0, 1, 0, 0, 1]],
        "row_starts": [0, 3],
    }


def test_a_row_with_a_wrong_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="a label for each of 2 tokens of a row, found 1"):
        LabelCollator(pad_id=0)([{"input_ids": [7, 8], "labels": [7]}])


def test_with_a_response_template_alone_the_last_answer_is_learned():
    ids = [USER, 10, ASSISTANT, 11, USER, 12, ASSISTANT, 13, EOS]

    assert labels(ids, instruction=None) == [I, I, I, I, I, I, I, 13, EOS]


def test_with_an_instruction_template_each_answer_is_learned():
    ids = [USER, 10, ASSISTANT, 11, 12, USER, 13, ASSISTANT, 14]

    assert labels(ids) == [I, I, I, 11, 12, I, I, I, 14]


def test_a_conversation_may_begin_with_an_answer_and_end_with_a_question():
    ids = [10, ASSISTANT, 11, USER, 12, ASSISTANT, 13, USER, 14]

    assert labels(ids) == [I, I, 11, I, I, I, 13, I, I]


def test_two_answers_or_two_questions_in_a_row_are_told_apart():
    ids = [USER, 10, USER, 11, ASSISTANT, 12, ASSISTANT, 13]

    assert labels(ids) == [I, I, I, I, I, 12, I, 13]


def test_a_row_without_an_answer_is_warned_of_and_not_learned():
    with pytest.warns(UserWarning, match="response template '<assistant>' in each row, found none in '<user> what'"):
        found = labels([USER, 6])

    assert found == [I, I]


def test_templates_may_be_token_ids():
    collator = DataCollatorForCompletionOnlyLM([ASSISTANT], tokenizer=tiny_tokenizer())

    assert collator([{"input_ids": [6, ASSISTANT, 7]}])["labels"].tolist() == [[I, I, 7]]


def test_an_eos_is_learned_where_the_tokenizer_pads_with_it():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    collator = DataCollatorForCompletionOnlyLM("<assistant>", tokenizer=tokenizer)

    batch = collator([{"input_ids": [ASSISTANT, 7, EOS]}, {"input_ids": [ASSISTANT, 8, 9, EOS]}])

    assert batch["labels"].tolist() == [[I, 7, EOS, I], [I, 8, 9, EOS]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlm": True}, "mlm=False"),
        ({"ignore_index": 0}, "ignore_index=-100"),
        ({"tokenizer": None}, "expected a tokenizer"),
        ({"response_template": ""}, "response_template with tokens, found ''"),
        ({"instruction_template": []}, r"instruction_template with tokens, found \[\]"),
    ],
)
def test_refuses_what_it_cannot_do(arguments, message):
    defaults = {"response_template": "<assistant>", "tokenizer": tiny_tokenizer()}

    with pytest.raises(ValueError, match=message):
        DataCollatorForCompletionOnlyLM(**{**defaults, **arguments})
