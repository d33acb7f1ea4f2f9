"""Packed rows: no token lost, documents kept apart or cut where a row ends."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stages.losses.sft import IGNORED
from stages.rows.packing import ConstantLengthDataset, Document, follow_each_other, packed_dataset, stay_apart
from tests.trainers.tiny import tiny_tokenizer

EOS = 2
TEXTS = [{"text": text} for text in ("what is the sky", "blue", "a sea is green", "red fine bad good", "yes no")]
LENGTHS = st.lists(st.integers(1, 9), max_size=30)


def documents(lengths):
    numbers = itertools.count(100)
    made = [[next(numbers) for _ in range(length)] for length in lengths]
    return [Document(ids, ids) for ids in made]


def dataset(**settings):
    defaults = {"dataset_text_field": "text", "seq_length": 6, "shuffle": False}
    return ConstantLengthDataset(tiny_tokenizer(), TEXTS, **{**defaults, **settings})


def tokens_of(rows):
    return [token for row in rows for token in row.input_ids]


@given(LENGTHS, st.integers(1, 8))
def test_rows_that_follow_each_other_hold_all_tokens_in_order(lengths, seq_length):
    given = documents(lengths)

    rows = list(follow_each_other(given, seq_length=seq_length))

    assert tokens_of(rows) == [token for document in given for token in document.input_ids]
    assert all(len(row.input_ids) == seq_length for row in rows[:-1])
    assert all(row.labels == row.input_ids and row.position_ids is None for row in rows)


@given(LENGTHS, st.integers(1, 8))
def test_documents_that_stay_apart_lose_no_token_and_are_whole_where_they_fit(lengths, seq_length):
    given = documents(lengths)

    rows = list(stay_apart(given, seq_length=seq_length))

    assert sorted(tokens_of(rows)) == sorted(token for document in given for token in document.input_ids)
    assert all(len(row.input_ids) <= seq_length for row in rows)
    for document in given:
        if len(document.input_ids) <= seq_length:
            row = next(row for row in rows if document.input_ids[0] in row.input_ids)
            start = row.input_ids.index(document.input_ids[0])
            part = slice(start, start + len(document.input_ids))
            assert row.input_ids[part] == document.input_ids
            assert row.position_ids[part] == list(range(len(document.input_ids)))
            assert row.labels[part] == [IGNORED, *document.labels[1:]]


def test_documents_share_a_row_that_has_room():
    # 5 first; 4 doesn't fit beside it; 3 fits beside 4 and 2 beside 5
    rows = list(stay_apart(documents([2, 5, 3, 4]), seq_length=7))

    assert [len(row.input_ids) for row in rows] == [7, 7]
    assert [row.position_ids for row in rows] == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 0, 1, 2]]


@pytest.mark.parametrize("num_of_sequences", [1, 2, 1024])
def test_s2_the_tail_of_a_buffer_goes_on_into_the_next(num_of_sequences):
    tokenizer = tiny_tokenizer()
    expected = [[*tokenizer(row["text"])["input_ids"], EOS] for row in TEXTS]

    rows = list(dataset(num_of_sequences=num_of_sequences, chars_per_token=1.0).rows())

    assert tokens_of(rows) == [token for ids in expected for token in ids]
    assert [len(row.input_ids) for row in rows] == [6, 6, 6, 2]


def test_s2_a_text_that_fills_the_buffer_exactly_ends_the_data_without_error():
    length = sum(len(row["text"]) for row in TEXTS)

    rows = list(dataset(num_of_sequences=1, seq_length=1, chars_per_token=length).rows())

    assert len(rows) == 20


def test_s2_a_formatting_function_that_gives_a_list_is_refused():
    packer = dataset(dataset_text_field=None, formatting_func=lambda row: [row["text"]])

    with pytest.raises(ValueError, match="one text per row where rows are packed, found list"):
        list(packer.rows())


def test_s2_rows_are_shuffled_by_a_seed_of_their_own():
    def order(seed, epoch=0):
        packer = dataset(shuffle=True, seed=seed, seq_length=2)
        packer.set_epoch(epoch)
        return tokens_of(packer.rows())

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)

    assert order(0) == first
    assert order(1) != first
    assert order(0, epoch=1) != first
    assert sorted(order(1)) == sorted(first)


def test_texts_may_go_without_eos_and_special_tokens_and_take_an_eos_of_their_own():
    plain = tokens_of(dataset(append_concat_token=False, add_special_tokens=False).rows())
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    other = ConstantLengthDataset(tokenizer, TEXTS, dataset_text_field="text", eos_token_id=9)

    assert EOS not in plain
    assert tokens_of(other.rows()).count(9) >= len(TEXTS)


def test_a_text_that_ends_with_its_eos_gets_no_second_one():
    texts = [
        {"text": row["text"] + ending} for row, ending in zip(TEXTS, ("</s>", "</s>\n", "", "", "</s>"), strict=True)
    ]
    packer = ConstantLengthDataset(tiny_tokenizer(), texts, dataset_text_field="text", seq_length=6, shuffle=False)

    assert tokens_of(packer.rows()) == tokens_of(dataset(shuffle=False).rows())


def test_infinite_data_begins_again_and_never_gives_a_short_row():
    rows = list(itertools.islice(dataset(infinite=True).rows(), 40))

    assert {len(row.input_ids) for row in rows} == {6}


def test_worker_processes_share_the_rows():
    packer = dataset(seq_length=5)

    found = [row["input_ids"].tolist() for row in DataLoader(packer, batch_size=None, num_workers=2)]

    assert sorted(found) == sorted(row["input_ids"].tolist() for row in packer)


def test_a_dataset_of_packed_rows_has_their_columns():
    rows = list(stay_apart(documents([2, 3] * 1100), seq_length=5))

    found = packed_dataset(rows)

    assert found.column_names == ["input_ids", "labels", "position_ids"]
    assert found["input_ids"][:] == [row.input_ids for row in rows]
    assert packed_dataset(follow_each_other(documents([2]), seq_length=2)).column_names == ["input_ids", "labels"]
    assert len(packed_dataset([])) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_text_field": None}, "found neither"),
        ({"formatting_func": str}, "found both"),
        ({"seq_length": 0}, "seq_length and num_of_sequences from 1"),
        ({"chars_per_token": 0.0}, "chars_per_token above 0"),
    ],
)
def test_refuses_settings_that_say_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        dataset(**settings)


def test_refuses_to_repeat_nothing_for_ever():
    with pytest.raises(ValueError, match="expected rows to pack, found none"):
        next(ConstantLengthDataset(tiny_tokenizer(), [], dataset_text_field="text", infinite=True).rows())
