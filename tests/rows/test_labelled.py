"""Rows with a label, joined from artifacts."""

import numpy as np
import pyarrow as pa
import pytest

from stages.contracts.artifact import ContractError, read_table, write_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.files import files_below
from stages.contracts.tokens import TOKENS
from stages.rows.labelled import labelled_rows
from stages.rows.mismatched import mismatched_places, mismatched_rows
from stages.rows.pairs import pair_rows
from tests.rows.small_tables import artifacts, density_ratios, kept, mismatched_logps, vote
from tests.stages.feedback import write_reference_logps, write_tokens

ROWS = [
    vote("p", True), vote("q", False), vote("r", None), vote("s", True), vote("t", False, split="test"), vote("u", True)
]  # fmt: skip
PROMPTS = ["u", "t", "s", "r", "q", "p"]


def train(folder, tokens, found):
    return kept(folder, found, tokens, "labelled").of_split("train")


def test_rows_are_places_with_what_was_computed_of_them(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    found = labelled_rows(tokens, reference, density_ratios(tmp_path, PROMPTS)).table

    assert found["row"].to_pylist() == [0, 1, 3, 4, 5]
    assert found["label"].to_pylist() == [True, False, True, False, True]
    assert found["split"].to_pylist() == ["train"] * 3 + ["test", "train"]
    assert found["reference_logps"].to_pylist() == [0.0, -1.0, -3.0, -4.0, -5.0]
    assert found["length"].to_pylist() == [3] * 5
    # p, q, s, t, u are the sixth, fifth, third, second and first prompt
    assert found["desired_weight"].to_pylist() == [6.0, 5.0, 3.0, 2.0, 1.0]
    assert found["undesired_weight"].to_pylist() == [12.0, 10.0, 6.0, 4.0, 2.0]
    assert found["logit_offset"].to_pylist() == [18.0, 15.0, 9.0, 6.0, 3.0]
    assert found["partner"].null_count == found["margin"].null_count == 5


def test_what_is_read_again_is_what_joining_the_artifacts_gives(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    found = labelled_rows(tokens, reference, density_ratios(tmp_path, PROMPTS), mismatched_logps(tmp_path, tokens))

    table = read_table(tokens, TOKENS)
    pairing = mismatched_places(table)
    mismatched = mismatched_rows(table, pairing)["input_ids"].to_pylist()
    weights = {prompt: number for number, prompt in enumerate(PROMPTS, start=1)}
    expected = [
        {
            "row_id": row["row_id"],
            "weight": row["weight"],
            "input_ids": row["input_ids"],
            "prompt_length": row["prompt_length"],
            "label": row["label"],
            "reference_logps": -float(place),
            "kl_input_ids": mismatched[order],
            "kl_prompt_length": row["prompt_length"],
            "reference_kl_logps": -100.0 - order,
            "desired_weight": 1.0 * weights[row["prompt_id"]],
            "undesired_weight": 2.0 * weights[row["prompt_id"]],
            "logit_offset": 3.0 * weights[row["prompt_id"]],
        }
        for order, place in enumerate(pairing.rows)
        for row in [table.slice(place, 1).to_pylist()[0]]
    ]
    assert list(train(tmp_path, tokens, found).dataset()) == expected


def test_a_mismatched_row_is_cut_where_the_reference_scored_it(tmp_path):
    # The longest labelled row of the training split has five tokens, the longest of all seven.
    rows = [
        vote("p", True, input_ids=[1, 5, 6, 7, 8], prompt_length=4),
        vote("q", False, input_ids=[1, 9, 10, 11], prompt_length=1),
        vote("r", True, input_ids=[1, 2, 3, 4, 5, 6, 7], prompt_length=2, split="test"),
    ]
    tokens, reference = artifacts(tmp_path, rows)

    found = labelled_rows(tokens, reference, None, mismatched_logps(tmp_path, tokens))

    dataset = train(tmp_path, tokens, found).dataset()
    assert dataset["kl_input_ids"][:] == [[1, 5, 6, 7, 9], [1, 8]]
    assert dataset["kl_prompt_length"][:] == [4, 1]


def test_labelled_rows_come_with_the_reference_of_their_mismatched_rows(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    found = labelled_rows(tokens, reference, None, mismatched_logps(tmp_path, tokens))

    dataset = train(tmp_path, tokens, found).dataset()
    assert dataset["reference_logps"][:] == [0.0, -1.0, -3.0, -5.0]
    assert dataset["reference_kl_logps"][:] == [-100.0, -101.0, -102.0, -103.0]
    assert dataset["kl_prompt_length"][:] == [2] * 4
    assert found.counts == {"train": {"desired": 3, "undesired": 1, "without_label": 1, "held_out": 1}}


def test_rows_held_out_have_no_mismatched_ones(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    found = labelled_rows(tokens, reference, None, mismatched_logps(tmp_path, tokens))

    held_out = kept(tmp_path, found, tokens, "labelled").of_split("test").dataset()
    assert held_out["reference_logps"][:] == [-4.0]
    assert "kl_input_ids" not in held_out.column_names


def test_labelled_rows_have_no_such_columns_without_that_artifact(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    dataset = train(tmp_path, tokens, labelled_rows(tokens, reference)).dataset()

    assert set(dataset.column_names) == {
        "row_id", "label", "weight", "input_ids", "prompt_length", "reference_logps"
    }  # fmt: skip


def test_an_artifact_of_other_rows_says_to_rerun_its_stage(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)
    mismatched = mismatched_logps(tmp_path, tokens, row_id="another")
    fewer = write_reference_logps(tmp_path / "fewer", [0.0], [1])

    with pytest.raises(ContractError, match="mismatched: expected the mismatched rows of .*, found others; rerun"):
        labelled_rows(tokens, reference, None, mismatched)
    for joined in (labelled_rows, pair_rows):
        with pytest.raises(ContractError, match="fewer: expected the rows of .*tokens in their order, found others"):
            joined(tokens, fewer)


def test_names_a_prompt_without_density_ratio(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    with pytest.raises(ContractError, match="expected every prompt of the rows, found none for p; rerun density_ratio"):
        labelled_rows(tokens, reference, density_ratios(tmp_path, PROMPTS[:-1]))


def not_measured(folder, correction):
    path = density_ratios(folder, PROMPTS)
    meta = {"correction": correction, "not_measured": "expected desired and undesired rows, found 4 and 0"}
    write_table(path, read_table(path, DENSITY_RATIOS), DENSITY_RATIOS, meta=meta)
    return path


@pytest.mark.parametrize("correction", ["udm", "offset", "deployment"])
def test_weights_that_were_not_measured_are_refused_where_they_are_asked_for(tmp_path, correction):
    tokens, reference = artifacts(tmp_path, ROWS)

    with pytest.raises(ValueError, match=f"density_ratio.correction is {correction}, but expected .*, found 4 and 0"):
        labelled_rows(tokens, reference, not_measured(tmp_path, correction))


def test_weights_that_were_not_measured_do_no_harm_where_none_are_asked_for(tmp_path):
    tokens, reference = artifacts(tmp_path, ROWS)

    assert len(labelled_rows(tokens, reference, not_measured(tmp_path, "none")).table) == 5


def test_rows_of_one_label_are_rows(tmp_path):
    tokens, reference = artifacts(tmp_path, [vote("p", True), vote("q", True)])

    found = labelled_rows(tokens, reference)

    assert found.table["label"].to_pylist() == [True, True]
    assert found.counts["train"]["undesired"] == 0


def test_a_row_takes_some_fifty_bytes(tmp_path):
    random, number = np.random.default_rng(0), 20_000
    lengths = random.integers(20, 30, number)
    rows = [
        {"prompt_id": f"p{place // 2}", "label": bool(place % 3), "input_ids": [7] * length, "prompt_length": 9}
        for place, length in enumerate(lengths.tolist())
    ]
    tokens = write_tokens(tmp_path / "tokens", rows)
    reference = write_reference_logps(tmp_path / "logps", random.normal(size=number).tolist(), [1] * number)
    ratios = read_table(density_ratios(tmp_path, [f"p{place}" for place in range(number // 2)]), DENSITY_RATIOS)
    for name in ("desired_weight", "undesired_weight", "logit_offset"):
        place = ratios.column_names.index(name)
        ratios = ratios.set_column(place, name, pa.array(random.normal(size=number // 2), pa.float32()))
    write_table(tmp_path / "ratios", ratios, DENSITY_RATIOS)

    found = labelled_rows(tokens, reference, tmp_path / "ratios", mismatched_logps(tmp_path, tokens))

    kept(tmp_path, found, tokens, "labelled")
    size = sum(file.stat().st_size for file in files_below(tmp_path / "rows"))
    assert 10 < size / number < 60
