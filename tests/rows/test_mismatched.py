"""Prompts with the completion of another row: which row it is, and what a new row changes."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.tokens import TOKENS
from stages.rows.mismatched import mismatched, mismatched_places, mismatched_rows, partners


def partners_by_walking(prompts, order):
    """From each row back in the order, round the end, to the first row of another prompt."""
    found = [-1] * len(prompts)
    for place, row in enumerate(order):
        back = (order[(place - step) % len(order)] for step in range(1, len(order)))
        found[row] = next(other for other in back if prompts[other] != prompts[row])
    return found


TABLES = st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda prompts: len(set(prompts)) > 1)


@given(TABLES.flatmap(lambda prompts: st.tuples(st.just(prompts), st.permutations(range(len(prompts))))))
def test_a_partner_is_the_row_before_it_that_has_another_prompt(table):
    prompts, order = table

    assert partners(prompts, np.array(order)) == partners_by_walking(prompts, order)


@given(TABLES)
def test_without_an_order_rows_follow_each_other_as_they_stand(prompts):
    assert partners(prompts) == partners_by_walking(prompts, range(len(prompts)))


@pytest.mark.parametrize("number", range(2, 12))
def test_k2_no_row_is_its_own_partner_whatever_the_size_of_the_table(number):
    found = partners([f"prompt {row}" for row in range(number)])

    assert all(row != partner for row, partner in enumerate(found))
    assert sorted(found) == list(range(number))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_k2_rows_of_one_prompt_are_refused_with_what_to_do(number):
    with pytest.raises(ValueError, match=f"found one in {number} rows.*or take loss_type apo_zero_unpaired"):
        partners(["the same"] * number)


def test_a_mismatched_row_is_a_prompt_with_its_partners_completion():
    found = mismatched([[1, 2, 30, 31], [1, 4, 5, 40], [1, 60, 61]], [2, 3, 1], [1, 2, 0])

    assert found == [[1, 2, 40], [1, 4, 5, 60], [1, 30, 31]]


def test_a_mismatched_row_is_no_longer_than_the_longest_row():
    # prompt of four tokens and completion of three: cut to five, and the completion keeps a token
    found = mismatched([[1, 2, 3, 4, 9], [1, 5, 6, 7]], [4, 1], [1, 0])

    assert found == [[1, 2, 3, 4, 5], [1, 9]]


def tokens(*rows):
    """Rows of (row_id, prompt_id), each with ids of its own and one length."""
    columns = {
        "row_id": [row_id for row_id, _ in rows],
        "prompt_id": [prompt for _, prompt in rows],
        "pair_id": [None] * len(rows),
        "label": [index % 2 == 0 for index in range(len(rows))],
        "weight": [1.0] * len(rows),
        "split": ["train"] * len(rows),
        "input_ids": [[1, *map(ord, row_id), *map(ord, prompt)] for row_id, prompt in rows],
        "prompt_length": [2] * len(rows),
        "truncated": [False] * len(rows),
    }
    return TOKENS.conform(pa.table(columns))


def mismatched_table(rows):
    return mismatched_rows(rows, mismatched_places(rows))


ROWS = [("d", "p"), ("a", "q"), ("m", "r"), ("x", "s"), ("h", "p"), ("c", "t"), ("k", "q")]


def by_place(table):
    return list(zip(table["row_id"].to_pylist(), table["input_ids"].to_pylist(), strict=True))


@pytest.mark.parametrize("row_id", "beglnyz")
def test_a_new_row_changes_the_mismatched_row_of_one_neighbour_alone(row_id):
    before = by_place(mismatched_table(tokens(*ROWS)))

    after = by_place(mismatched_table(tokens(*ROWS, (row_id, "new"))))

    changed = [place for place, row in enumerate(before) if after[place] != row]
    assert len(after) == len(ROWS) + 1
    assert len(changed) == 1


def test_rows_keep_their_mismatched_rows_wherever_they_stand_in_the_table():
    found = [sorted(by_place(mismatched_table(tokens(*rows)))) for rows in (ROWS, ROWS[::-1])]

    assert found[0] == found[1]


def test_a_table_has_the_labelled_rows_of_the_training_split_with_ids_of_their_own():
    table = tokens(*ROWS).to_pylist()
    table[1]["split"], table[2]["label"] = "test", None

    found = mismatched_table(TOKENS.conform(pa.Table.from_pylist(table)))

    assert found["prompt_id"].to_pylist() == ["p", "s", "p", "t", "q"]
    assert found["prompt_length"].to_pylist() == [2] * 5
    assert not {row_id for row_id, _ in ROWS} & set(found["row_id"].to_pylist())
    assert len(set(found["row_id"].to_pylist())) == 5


def test_places_name_the_two_rows_that_each_mismatched_row_is_made_of():
    rows = tokens(*ROWS)
    ids, lengths = (rows[name].to_pylist() for name in ("input_ids", "prompt_length"))

    pairing = mismatched_places(rows)

    assert pairing.rows == list(range(len(ROWS)))
    made = [[*ids[row][: lengths[row]], *ids[other][lengths[other] :]] for row, other in zip(*pairing, strict=True)]
    assert mismatched_rows(rows, pairing)["input_ids"].to_pylist() == made


def test_a_table_without_labelled_rows_has_no_mismatched_ones():
    assert mismatched_table(tokens()).num_rows == 0
