"""Rows that supervised fine-tuning imitates."""

import pytest

from stages.rows.demonstrations import demonstration_rows
from tests.rows.small_tables import artifacts, kept, vote

ROWS = [vote("p", None), vote("q", False), vote("r", True, weight=0.5), vote("s", None, split="test")]


def test_rows_are_what_people_liked_and_what_nobody_voted_on(tmp_path):
    tokens, _ = artifacts(tmp_path, ROWS)

    found = demonstration_rows(tokens)

    assert found.table["row"].to_pylist() == [0, 2, 3]
    assert found.table["label"].to_pylist() == [None, True, None]
    assert found.counts == {"train": {"undesired": 1, "train": 2, "held_out": 1}}


def test_what_is_read_again_is_what_the_tokens_hold(tmp_path):
    tokens, _ = artifacts(tmp_path, ROWS)

    rows = kept(tmp_path, demonstration_rows(tokens), tokens, "demonstrations")

    expected = [
        {"row_id": f"row{place}", "weight": weight, "input_ids": [1, 5, 10 + place], "prompt_length": 2}
        for place, weight in ((0, 1.0), (2, 0.5), (3, 1.0))
    ]
    assert list(rows.of_split("train").dataset()) == expected[:2]
    assert list(rows.of_split("test").dataset()) == expected[2:]


def test_nothing_to_imitate_is_refused_with_counts(tmp_path):
    tokens, _ = artifacts(tmp_path, [vote("p", False), vote("q", True, split="test")])

    with pytest.raises(ValueError, match="expected demonstrations to learn from, found none .*'undesired': 1, 'train'"):
        demonstration_rows(tokens)
