"""Batches of encoded rows: padding, masks, columns, several sequences in one tensor."""

import pytest
import torch

from stages.rows.collation import PreferenceCollator, default_collator, stacked
from stages.rows.raw import PAIR
from tests.trainers.tiny import tiny_tokenizer

ROWS = [
    {"row_id": "a", "input_ids": [5, 6, 7], "prompt_length": 1, "label": True, "weight": 2.0},
    {"row_id": "b", "input_ids": [8, 9], "prompt_length": 1, "label": False, "weight": 1.0},
]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Widths are those of the rows wherever the tests run."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def pair(chosen, chosen_prompt, rejected, rejected_prompt):
    return {
        "chosen_input_ids": chosen,
        "chosen_prompt_length": chosen_prompt,
        "rejected_input_ids": rejected,
        "rejected_prompt_length": rejected_prompt,
    }


PAIRS = [pair([5, 6, 7], 2, [5, 6], 1), pair([8, 9], 1, [8, 4], 1)]


def test_rows_are_padded_on_the_right_and_masks_say_what_counts():
    batch = PreferenceCollator(3)(ROWS)

    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_a_pad_id_among_the_ids_of_a_row_is_a_token_like_others():
    batch = PreferenceCollator(7)(ROWS)

    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_numbers_become_tensors_and_texts_stay_lists():
    batch = PreferenceCollator(0)([{**row, "length": 3} for row in ROWS])

    assert batch["row_id"] == ["a", "b"]
    assert torch.equal(batch["label"], torch.tensor([True, False]))
    assert torch.equal(batch["weight"], torch.tensor([2.0, 1.0]))
    assert torch.equal(batch["length"], torch.tensor([3, 3]))
    assert "prompt_length" not in batch


def test_the_two_sequences_of_a_pair_are_padded_each_to_its_own_width():
    batch = PreferenceCollator(0)(PAIRS)

    assert batch["chosen_input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["rejected_input_ids"].tolist() == [[5, 6], [8, 4]]
    assert batch["chosen_completion_mask"].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_sequences_are_stacked_to_the_width_of_the_longest():
    batch = PreferenceCollator(0)(PAIRS)

    assert stacked(batch, PAIR, "input_ids", fill=9).tolist() == [[5, 6, 7], [8, 9, 0], [5, 6, 9], [8, 4, 9]]
    assert stacked(batch, PAIR, "attention_mask").tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert stacked(batch, PAIR[:1], "input_ids") is batch["chosen_input_ids"]


def test_an_encoder_decoder_gets_prompts_and_completions_apart():
    batch = PreferenceCollator(0, is_encoder_decoder=True)(PAIRS)

    assert batch["chosen_input_ids"].tolist() == [[5, 6], [8, 0]]
    assert batch["chosen_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["chosen_decoder_input_ids"].tolist() == [[7], [9]]
    assert batch["rejected_decoder_input_ids"].tolist() == [[6], [4]]
    assert batch["rejected_completion_mask"].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("tokens", "value", "expected"), [({}, 9, 9), ({}, 0, 0), ({}, None, 0), ({"pad": None}, None, 2)]
)
def test_the_pad_id_is_the_given_one_or_the_tokenizers_or_its_end(tokens, value, expected):
    tokenizer = tiny_tokenizer()
    if tokens:
        tokenizer.pad_token = None

    assert default_collator(tokenizer, padding_value=value, is_encoder_decoder=False).pad_id == expected


def test_no_id_to_pad_with_is_refused():
    with pytest.raises(ValueError, match="expected processing_class, a tokenizer with a pad token"):
        default_collator(None, padding_value=None, is_encoder_decoder=False)


def test_on_cuda_batches_have_few_widths(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    row = {"input_ids": [5] * 130, "prompt_length": 100}

    batch = PreferenceCollator(3)([row])

    assert batch["input_ids"].shape == (1, 160)
    assert batch["attention_mask"].sum() == 130
    assert batch["completion_mask"].sum() == 30
