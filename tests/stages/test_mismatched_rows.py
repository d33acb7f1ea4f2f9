"""Stage `mismatched_rows`: a `tokens` artifact of prompts with other rows' completions."""

import pytest

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.tokens import TOKENS
from stages.mismatched_rows import run
from stages.rows.mismatched import mismatched_places, mismatched_rows
from tests.stages.feedback import write_tokens

ROWS = [{"input_ids": [1, 10 + row, 20 + row, 2], "prompt_length": 2, "label": row % 2 == 0} for row in range(5)]


def test_it_writes_the_mismatched_rows_of_its_input_and_says_how_many(tmp_path, capsys):
    held_out = {"input_ids": [1, 9, 2], "prompt_length": 2, "split": "test"}
    tokens = write_tokens(tmp_path / "tokens", [*ROWS, held_out])

    run(tokens=tokens, mismatched_tokens=tmp_path / "found")

    rows, found = read_table(tokens, TOKENS), read_table(tmp_path / "found", TOKENS)
    assert found.equals(mismatched_rows(rows, mismatched_places(rows)))
    assert found.num_rows == 5
    for row, ids in zip(ROWS, found["input_ids"].to_pylist(), strict=True):
        assert ids[:2] == row["input_ids"][:2]
        assert ids[2:] != row["input_ids"][2:]
    assert "mismatched_rows: 5 rows" in capsys.readouterr().out


def test_rows_of_one_prompt_and_a_missing_artifact_are_refused(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", [{"prompt_id": "the same"}, {"prompt_id": "the same"}])

    with pytest.raises(ValueError, match="expected at least two prompts"):
        run(tokens=tokens, mismatched_tokens=tmp_path / "found")
    with pytest.raises(ContractError, match="nowhere"):
        run(tokens=tmp_path / "nowhere", mismatched_tokens=tmp_path / "found")
