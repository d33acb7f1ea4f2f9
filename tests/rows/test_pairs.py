"""Pairs read off the rows of `tokens`."""

import json

import pyarrow as pa
import pytest

from stages.rows.pairs import pair_margins, read_pairs
from tests.stages.feedback import write_completions, write_tokens

ROWS = [
    {"prompt_id": "p", "pair_id": "one", "label": False, "input_ids": [1, 2, 9], "prompt_length": 2, "weight": 3.0},
    {"prompt_id": "q", "label": True, "input_ids": [1, 4, 5], "prompt_length": 2},
    {"prompt_id": "p", "pair_id": "one", "label": True, "input_ids": [1, 2, 8], "prompt_length": 2},
    {"prompt_id": "q", "label": False, "input_ids": [1, 4, 6], "prompt_length": 2},
    {"prompt_id": "q", "label": False, "input_ids": [1, 4, 7], "prompt_length": 2},
    {"prompt_id": "r", "pair_id": "half", "label": True},
    {"prompt_id": "r", "label": None},
    {"prompt_id": "s", "label": True, "input_ids": [1, 2, 3], "prompt_length": 2},
    {"prompt_id": "s", "label": False, "input_ids": [2, 3], "prompt_length": 1},
    {"prompt_id": "t", "pair_id": "two", "label": True, "split": "test"},
    {"prompt_id": "t", "pair_id": "two", "label": False, "split": "test"},
]


def test_pairs_of_the_log_and_of_votes_become_rows_of_two_completions(tmp_path):
    table, counts = read_pairs(write_tokens(tmp_path / "tokens", ROWS), split="train")

    assert table["prompt_id"].to_pylist() == ["p", "q", "q"]
    assert table["row_id"].to_pylist()[0] == "one"
    assert table["chosen_input_ids"].to_pylist() == [[1, 2, 8], [1, 4, 5], [1, 4, 5]]
    assert table["rejected_input_ids"].to_pylist() == [[1, 2, 9], [1, 4, 6], [1, 4, 7]]
    assert table["chosen_prompt_length"].to_pylist() == [2, 2, 2]
    assert table["weight"].to_pylist() == [2.0, 1.0, 1.0]
    assert counts == {
        "pairs": 3,
        "pairs_given": 1,
        "pairs_from_votes": 3,
        "pairs_with_prompts_cut_differently": 1,
        "rows_without_partner": 1,
        "without_label": 1,
        "other_split": 2,
    }


def test_a_split_has_its_own_pairs(tmp_path):
    assert read_pairs(write_tokens(tmp_path / "tokens", ROWS), split="test").table["row_id"].to_pylist() == ["two"]


def test_says_that_there_are_no_pairs(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", [{"label": True}, {"label": False}])

    with pytest.raises(ValueError, match="expected pairs in the split train, found none among 2 rows"):
        read_pairs(tokens, split="train")


def completions(folder, sources):
    rows = [
        {"prompt": name, "pair_id": name, "label": label, "source": json.dumps(source)}
        for name, source in sources.items()
        for label in (True, False)
    ]
    return write_completions(folder / "completions", rows)


def test_margins_are_numbers_of_the_log_or_stand_for_its_texts(tmp_path):
    path = completions(tmp_path, {"b": {"gap": 2, "strength": "clear"}, "a": {"gap": 0.5, "strength": "slight"}})
    pairs = pa.table({"row_id": ["a", "b"]})

    assert pair_margins(pairs, path, "gap").to_pylist() == [0.5, 2.0]
    assert pair_margins(pairs, path, "strength", {"slight": 0.25, "clear": 1}).to_pylist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("size", None, "a finite number in the column 'size' of every pair, found None in a, which has gap, sure"),
        ("sure", None, "found True in a"),
        ("gap", {"clear": 1.0}, "expected one of clear in the column 'gap' of every pair, found 2 in a"),
    ],
)
def test_names_the_pair_without_margin(tmp_path, column, values, message):
    path = completions(tmp_path, {"a": {"gap": 2, "sure": True}})

    with pytest.raises(ValueError, match=message):
        pair_margins(pa.table({"row_id": ["a"]}), path, column, values)
