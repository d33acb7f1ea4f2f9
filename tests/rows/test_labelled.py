"""Rows and pairs joined from artifacts."""

import pytest

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.rows.labelled import labelled_training_rows, paired_training_rows
from stages.rows.mismatched import mismatched_table
from tests.stages.feedback import write_reference_logps, write_rows, write_tokens


def artifacts(folder, rows):
    """`tokens` of rows whose completion is their number, and log-probabilities that are minus it."""
    filled = [{"input_ids": [1, 5, 10 + number], "prompt_length": 2, **row} for number, row in enumerate(rows)]
    tokens = write_tokens(folder / "tokens", filled)
    return tokens, write_reference_logps(folder / "logps", [-float(n) for n in range(len(rows))], [1] * len(rows))


def pair(name, label, **row):
    return {"prompt_id": "p", "pair_id": name, "label": label, **row}


def vote(prompt, label, **row):
    return {"prompt_id": prompt, "label": label, **row}


def completions(dataset):
    return [(row["chosen_input_ids"][-1] - 10, row["rejected_input_ids"][-1] - 10) for row in dataset]


def counted(counts):
    """Rows that the counts account for, each labelled row once."""
    return counts["without_label"] + counts["other_split"] + counts["rows_without_partner"]


def test_rows_that_came_as_a_pair_are_one_whichever_stands_first(tmp_path):
    rows = [pair("b", False, weight=1.0), pair("a", True), pair("b", True, weight=3.0), pair("a", False)]

    found, counts = paired_training_rows(*artifacts(tmp_path, rows))

    assert completions(found) == [(2, 0), (1, 3)]
    assert found["row_id"][:] == ["b", "a"]
    assert found["weight"][:] == [2.0, 1.0]
    assert found["reference_chosen_logps"][:] == [-2.0, -1.0]
    assert found["reference_rejected_logps"][:] == [0.0, -3.0]
    assert (counts["pairs"], counts["pairs_given"], counts["pairs_from_votes"]) == (2, 2, 0)


def test_votes_on_a_prompt_make_pairs_the_fewer_taken_in_turn(tmp_path):
    rows = [vote("p", True), vote("p", False), vote("q", True), vote("p", False), vote("p", True), vote("p", False)]

    found, counts = paired_training_rows(*artifacts(tmp_path, rows))

    assert completions(found) == [(0, 1), (4, 3), (0, 5)]
    assert len(set(found["row_id"][:])) == 3
    assert (counts["pairs"], counts["pairs_from_votes"], counts["rows_without_partner"]) == (3, 3, 1)


def test_counts_account_for_every_row(tmp_path):
    rows = [
        pair("a", True), pair("a", False),  # a pair
        pair("b", True), pair("b", False, split="test"),  # half of one, and a row held out
        vote("q", True), vote("q", True), vote("q", False),  # two pairs of three rows
        vote("r", True), vote("s", False),  # no partner on their prompt
        vote("t", None), vote("u", True, split="test"),
    ]  # fmt: skip

    found, counts = paired_training_rows(*artifacts(tmp_path, rows))

    assert counts == {
        "pairs": 3,
        "pairs_given": 1,
        "pairs_from_votes": 2,
        "pairs_with_prompts_cut_differently": 0,
        "rows_without_partner": 3,
        "without_label": 1,
        "other_split": 2,
    }
    in_pairs = {place for pair_ in completions(found) for place in pair_}
    assert len(in_pairs) + counted(counts) == len(rows)


def test_pairs_whose_prompts_were_cut_differently_are_left_out_and_counted(tmp_path):
    rows = [pair("a", True), pair("a", False, input_ids=[5, 11], prompt_length=1), pair("b", True), pair("b", False)]

    found, counts = paired_training_rows(*artifacts(tmp_path, rows))

    assert found["row_id"][:] == ["b"]
    assert (counts["pairs"], counts["pairs_given"], counts["pairs_with_prompts_cut_differently"]) == (1, 2, 1)


def test_rows_without_any_pair_are_refused_with_what_to_give(tmp_path):
    message = r"expected pairs .* found none .*; give a log with chosen and rejected, or with votes"
    with pytest.raises(ValueError, match=message):
        paired_training_rows(*artifacts(tmp_path, [vote("p", True), vote("q", False)]))


ROWS = [
    vote("p", True), vote("q", False), vote("r", None), vote("s", True), vote("t", False, split="test"), vote("u", True)
]  # fmt: skip


def mismatched_logps(folder, tokens, **changes):
    rows = mismatched_table(read_table(tokens, TOKENS))
    table = [
        {"row_id": row_id, "logps": -100.0 - place, "num_tokens": 1, "token_logps": None}
        for place, row_id in enumerate(rows["row_id"].to_pylist())
    ]
    if changes:
        table[0] |= changes
    return rows, write_rows(folder / "mismatched", REFERENCE_LOGPS, table)


def test_labelled_rows_come_with_the_reference_of_their_mismatched_rows(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)
    rows, mismatched = mismatched_logps(tmp_path, tokens)

    found, counts = labelled_training_rows(tokens, reference, None, mismatched)

    assert found["reference_logps"][:] == [0.0, -1.0, -3.0, -5.0]
    assert found["reference_kl_logps"][:] == [-100.0, -101.0, -102.0, -103.0]
    assert found["kl_input_ids"][:] == rows["input_ids"].to_pylist()
    assert found["kl_prompt_length"][:] == [2] * 4
    assert counts == {"desired": 3, "undesired": 1, "without_label": 1, "held_out": 1}


def test_labelled_rows_have_no_such_columns_without_that_artifact(tmp_path):
    found, _ = labelled_training_rows(*artifacts(tmp_path, ROWS))

    assert found.column_names == ["row_id", "label", "weight", "input_ids", "prompt_length", "reference_logps"]


def test_an_artifact_of_other_rows_names_the_stage_to_rerun(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)
    _, mismatched = mismatched_logps(tmp_path, tokens, row_id="another")
    fewer = write_reference_logps(tmp_path / "fewer", [0.0], [1])

    with pytest.raises(ContractError, match="found others; rerun mismatched_reference_logprobs"):
        labelled_training_rows(tokens, reference, None, mismatched)
    for joined in (labelled_training_rows, paired_training_rows):
        with pytest.raises(ContractError, match="found others; rerun reference_logprobs"):
            joined(tokens, fewer)
