"""KTO's mismatched rows against TRL 0.21's."""

import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from stages.rows.mismatched import mismatched, partners
from stages.rows.raw import Lengths, RowReader
from tests.material import SHARED, needs_shared

CASE = SHARED / "parity" / "out" / "kto" / "kl_rows.json"


@pytest.fixture(scope="module")
def case():
    return json.loads(CASE.read_text())


@pytest.fixture(scope="module")
def rows(case):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "parity" / "assets" / "tok")
    lengths = Lengths(case["params"]["max_length"], case["params"]["max_prompt_length"])
    found, _ = RowReader(tokenizer, lengths).labelled(
        Dataset.from_list(case["values"]["rows"]), name="rows", extra_columns=()
    )
    return found


@needs_shared
def test_rows_are_encoded_as_the_peers(case, rows):
    for row, expected in zip(rows, case["values"]["processed"], strict=True):
        assert row["input_ids"] == expected["completion_input_ids"]
        assert row["prompt_length"] == expected["completion_labels"].count(-100)
        assert row["label"] == expected["label"]


@needs_shared
@pytest.mark.parametrize("block", [slice(0, 4), slice(4, 8), slice(8, 10)], ids=["first", "second", "rest"])
def test_partners_within_a_block_in_stored_order_give_the_peers_mismatched_rows(case, rows, block):
    ids, lengths = rows["input_ids"][block], rows["prompt_length"][block]
    prompts = [row["prompt"] for row in case["values"]["rows"][block]]

    found = mismatched(ids, lengths, partners(prompts))

    # A row of ours is no longer than the longest row of its table, so TRL's end is cut off where it is.
    for row, length, expected in zip(found, lengths, case["values"]["processed"][block], strict=True):
        assert row == expected["KL_completion_input_ids"][: max(map(len, ids))]
        assert length == expected["KL_completion_labels"].count(-100)
