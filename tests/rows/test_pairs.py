"""Pairs read off the rows of `tokens`, and by how much the chosen one should win."""

import json

import pyarrow.compute as pc
import pytest

from stages.rows.pairs import Margins, pair_ids, pair_rows
from tests.rows.small_tables import artifacts, kept, pair, vote
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


def train(folder, found):
    return kept(folder, found, folder / "tokens", "pairs").of_split("train").dataset()


def completions(dataset):
    return [(row["chosen_input_ids"][-1] - 10, row["rejected_input_ids"][-1] - 10) for row in dataset]


def test_pairs_of_the_log_and_of_votes_become_rows_of_two_completions(tmp_path):
    found = pair_rows(write_tokens(tmp_path / "tokens", ROWS))

    dataset = train(tmp_path, found)
    assert dataset["row_id"][0] == "one"
    assert dataset["chosen_input_ids"][:] == [[1, 2, 8], [1, 4, 5], [1, 4, 5]]
    assert dataset["rejected_input_ids"][:] == [[1, 2, 9], [1, 4, 6], [1, 4, 7]]
    assert dataset["chosen_prompt_length"][:] == [2, 2, 2]
    assert dataset["weight"][:] == [2.0, 1.0, 1.0]
    assert set(dataset.column_names) == {
        "row_id", "weight", "chosen_input_ids", "chosen_prompt_length", "rejected_input_ids", "rejected_prompt_length"
    }  # fmt: skip
    assert found.counts["train"] == {
        "pairs": 3,
        "pairs_given": 1,
        "pairs_from_votes": 3,
        "pairs_with_prompts_cut_differently": 1,
        "rows_without_partner": 1,
        "without_label": 1,
        "other_split": 2,
    }


def test_pairs_are_places_of_two_rows_with_their_lengths(tmp_path):
    found = pair_rows(write_tokens(tmp_path / "tokens", ROWS)).table

    assert list(zip(found["row"].to_pylist(), found["partner"].to_pylist(), strict=True)) == [
        (2, 0), (1, 3), (1, 4), (9, 10)
    ]  # fmt: skip
    assert found["length"].to_pylist() == found["partner_length"].to_pylist() == [3] * 4
    assert found["label"].null_count == found["reference_logps"].null_count == 4


def test_a_split_has_its_own_pairs(tmp_path):
    found = pair_rows(write_tokens(tmp_path / "tokens", ROWS))

    held_out = kept(tmp_path, found, tmp_path / "tokens", "pairs").of_split("test")
    assert held_out.dataset()["row_id"][:] == ["two"]
    assert held_out.texts()["prompt_id"].to_pylist() == ["t"]
    assert found.counts["test"]["pairs"] == 1


def test_rows_that_came_as_a_pair_are_one_whichever_stands_first(tmp_path):
    rows = [pair("b", False, weight=1.0), pair("a", True), pair("b", True, weight=3.0), pair("a", False)]

    found = pair_rows(*artifacts(tmp_path, rows))

    dataset, counts = train(tmp_path, found), found.counts["train"]
    assert completions(dataset) == [(2, 0), (1, 3)]
    assert dataset["row_id"][:] == ["b", "a"]
    assert dataset["weight"][:] == [2.0, 1.0]
    assert dataset["reference_chosen_logps"][:] == [-2.0, -1.0]
    assert dataset["reference_rejected_logps"][:] == [0.0, -3.0]
    assert (counts["pairs"], counts["pairs_given"], counts["pairs_from_votes"]) == (2, 2, 0)


def test_votes_on_a_prompt_make_pairs_the_fewer_taken_in_turn(tmp_path):
    rows = [vote("p", True), vote("p", False), vote("q", True), vote("p", False), vote("p", True), vote("p", False)]

    found = pair_rows(*artifacts(tmp_path, rows))

    dataset, counts = train(tmp_path, found), found.counts["train"]
    assert completions(dataset) == [(0, 1), (4, 3), (0, 5)]
    assert len(set(dataset["row_id"][:])) == 3
    assert (counts["pairs"], counts["pairs_from_votes"], counts["rows_without_partner"]) == (3, 3, 1)


def test_what_is_read_again_is_what_joining_the_artifacts_gives(tmp_path):
    rows = [pair("a", True, weight=2.0), vote("q", False), pair("a", False), vote("q", True), vote("q", True)]

    found = pair_rows(*artifacts(tmp_path, rows))

    ids = pair_ids(found.table, kept(tmp_path, found, tmp_path / "tokens", "pairs").source)
    assert list(train(tmp_path, found)) == [
        {
            "row_id": name,
            "weight": weight,
            "chosen_input_ids": [1, 5, 10 + chosen],
            "chosen_prompt_length": 2,
            "reference_chosen_logps": -float(chosen),
            "rejected_input_ids": [1, 5, 10 + rejected],
            "rejected_prompt_length": 2,
            "reference_rejected_logps": -float(rejected),
        }
        for name, (chosen, rejected), weight in zip(ids, [(0, 2), (3, 1), (4, 1)], [1.5, 1.0, 1.0], strict=True)
    ]


def test_counts_account_for_every_row(tmp_path):
    rows = [
        pair("a", True), pair("a", False),  # a pair
        pair("b", True), pair("b", False, split="test"),  # half of one, and a row held out
        vote("q", True), vote("q", True), vote("q", False),  # two pairs of three rows
        vote("r", True), vote("s", False),  # no partner on their prompt
        vote("t", None), vote("u", True, split="test"),
    ]  # fmt: skip

    found = pair_rows(*artifacts(tmp_path, rows))

    counts = found.counts["train"]
    assert counts == {
        "pairs": 3,
        "pairs_given": 1,
        "pairs_from_votes": 2,
        "pairs_with_prompts_cut_differently": 0,
        "rows_without_partner": 3,
        "without_label": 1,
        "other_split": 2,
    }
    in_pairs = {place for places in completions(train(tmp_path, found)) for place in places}
    left_out = counts["without_label"] + counts["other_split"] + counts["rows_without_partner"]
    assert len(in_pairs) + left_out == len(rows)
    assert found.counts["test"]["pairs"] == 0


def test_pairs_whose_prompts_were_cut_differently_are_left_out_and_counted(tmp_path):
    rows = [pair("a", True), pair("a", False, input_ids=[5, 11], prompt_length=1), pair("b", True), pair("b", False)]

    found = pair_rows(*artifacts(tmp_path, rows))

    counts = found.counts["train"]
    assert train(tmp_path, found)["row_id"][:] == ["b"]
    assert (counts["pairs"], counts["pairs_given"], counts["pairs_with_prompts_cut_differently"]) == (1, 2, 1)


@pytest.mark.parametrize(
    "rows", [[vote("p", True), vote("q", False)], [pair("a", True, split="test"), pair("a", False, split="test")]]
)
def test_rows_without_any_pair_to_train_on_are_refused_with_what_to_give(tmp_path, rows):
    number = sum(row.get("split", "train") == "train" for row in rows)
    message = f"expected pairs in the train split, found none among {number} rows; give a log with chosen and rejected"

    with pytest.raises(ValueError, match=message):
        pair_rows(*artifacts(tmp_path, rows))


def log_of_pairs(folder, sources):
    rows = [
        {"prompt": name, "pair_id": name, "label": label, "source": json.dumps(source)}
        for name, source in sources.items()
        for label in (True, False)
    ]
    return write_completions(folder / "completions", rows)


def test_margins_are_numbers_of_the_log_or_stand_for_its_texts(tmp_path):
    path = log_of_pairs(tmp_path, {"b": {"gap": 2, "strength": "clear"}, "a": {"gap": 0.5, "strength": "slight"}})

    assert Margins(path, "gap").of(["a", "b"]).to_pylist() == [0.5, 2.0]
    assert Margins(path, "strength", {"slight": 0.25, "clear": 1}).of(["a", "b"]).to_pylist() == [0.25, 1.0]


def test_margins_stand_beside_their_pairs_in_both_splits(tmp_path):
    path = log_of_pairs(tmp_path, {"a": {"gap": 0.5}, "b": {"gap": 2}})
    rows = [pair("b", True, split="test"), pair("a", False), pair("b", False, split="test"), pair("a", True)]

    found = pair_rows(*artifacts(tmp_path, rows), Margins(path, "gap"))

    assert train(tmp_path, found)["margin"][:] == [0.5]
    assert found.table.filter(pc.equal(found.table["split"], "test"))["margin"].to_pylist() == [2.0]


def test_a_pair_of_votes_has_no_margin(tmp_path):
    path = log_of_pairs(tmp_path, {"a": {"gap": 0.5}})

    with pytest.raises(ValueError, match="column 'gap' of every pair, found None in .*, which has no columns; name an"):
        pair_rows(*artifacts(tmp_path, [vote("p", True), vote("p", False)]), Margins(path, "gap"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("size", None, "a finite number in the column 'size' of every pair, found None in a, which has gap, sure"),
        ("sure", None, "found True in a"),
        ("gap", {"clear": 1.0}, "expected one of clear in the column 'gap' of every pair, found 2 in a"),
    ],
)
def test_names_the_pair_without_margin(tmp_path, column, values, message):
    path = log_of_pairs(tmp_path, {"a": {"gap": 2, "sure": True}})

    with pytest.raises(ValueError, match=message):
        Margins(path, column, values).of(["a"])
