"""Batches whose shapes follow from each row's own length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.rows.batching import bucket_length, fixed_batches, pad_rows, padded, stacked_rows


@pytest.mark.parametrize(
    ("length", "width"),
    [(0, 16), (1, 16), (16, 16), (17, 32), (128, 128), (129, 160), (256, 256), (257, 320), (1000, 1024), (1025, 1280)],
)
def test_a_row_is_padded_to_the_bucket_of_its_length(length, width):
    assert bucket_length(length) == width


@given(st.integers(min_value=65, max_value=10**6))
def test_less_than_a_quarter_of_a_long_row_is_padding(length):
    assert length <= bucket_length(length) < 1.25 * length


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="at least 0, found -1"):
        bucket_length(-1)


@given(st.lists(st.integers(min_value=0, max_value=300), max_size=60), st.integers(min_value=1, max_value=7))
def test_every_row_stands_in_one_batch_of_its_own_width(lengths, batch_size):
    batches = list(fixed_batches(lengths, batch_size=batch_size))

    assert sorted(row for rows, _, _ in batches for row in rows) == list(range(len(lengths)))
    assert all(bucket_length(lengths[row]) == width for rows, _, width in batches for row in rows)
    assert all(1 <= len(rows) <= batch_size for rows, _, _ in batches)


def test_the_widest_rows_come_first_and_a_short_batch_repeats_its_last_row():
    batches = list(fixed_batches([3, 200, 5, 20], batch_size=2))

    assert batches == [([1], [1, 1], 224), ([3], [3, 3], 32), ([0, 2], [0, 2], 16)]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch size of at least 1, found 0"):
        list(fixed_batches([1], batch_size=0))


def test_rows_are_padded_on_the_right():
    padded = pad_rows([[1, 2], [], [3, 4, 5]], width=3, pad_id=9)

    assert torch.equal(padded, torch.tensor([[1, 2, 9], [9, 9, 9], [3, 4, 5]]))


def test_rows_are_padded_on_the_left_where_a_decoder_goes_on_from_the_right_edge():
    ids, mask = padded([[1, 2], torch.tensor([3, 4, 5])], pad_id=9, on_left=True)

    assert torch.equal(ids, torch.tensor([[9, 1, 2], [3, 4, 5]]))
    assert torch.equal(mask, torch.tensor([[0, 1, 1], [1, 1, 1]]))


def test_what_is_padding_follows_from_lengths_and_not_from_ids():
    assert padded([[9, 9], [9]], pad_id=9).mask.tolist() == [[1, 1], [1, 0]]


def test_batches_of_other_widths_are_laid_one_below_the_other():
    assert torch.equal(
        stacked_rows([torch.tensor([[1]]), torch.tensor([[2, 3], [4, 5]])], fill=0),
        torch.tensor([[1, 0], [2, 3], [4, 5]]),
    )


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at most 2 tokens, found one of 3"):
        pad_rows([[1, 2, 3]], width=2, pad_id=0)
