"""The artifact `training_rows` read back, as it is and after a filter."""

import pyarrow as pa
import pytest

from stages.contracts.artifact import ContractError, read_manifest, read_table, write_table
from stages.contracts.tokens import TOKENS
from stages.contracts.training_rows import TRAINING_ROWS
from stages.rows.demonstrations import demonstration_rows
from stages.rows.labelled import labelled_rows
from stages.rows.reading import read_rows
from tests.rows.small_tables import artifacts, kept, mismatched_logps, vote
from tests.stages.feedback import write_tokens

ROWS = [vote("p", True), vote("q", False), vote("r", True), vote("s", False, split="test")]


@pytest.fixture
def tokens(tmp_path):
    path, reference = artifacts(tmp_path, ROWS)
    kept(tmp_path, labelled_rows(path, reference, None, mismatched_logps(tmp_path, path)), path, "labelled")
    return path


def test_rows_of_other_tokens_are_refused(tokens, tmp_path):
    write_tokens(tokens, [{**row, "input_ids": [1, 2, 3]} for row in ROWS])

    with pytest.raises(ContractError, match="rows: expected places in .*tokens as it is now, found those of another"):
        read_rows(tmp_path / "rows", tokens, kind="labelled")


def test_the_same_tokens_elsewhere_are_the_same(tokens, tmp_path):
    elsewhere = write_tokens(tmp_path / "elsewhere", [])
    write_table(elsewhere, read_table(tokens, TOKENS), TOKENS)

    assert len(read_rows(tmp_path / "rows", elsewhere, kind="labelled").table) == 4


def test_rows_of_another_kind_are_refused(tokens, tmp_path):
    with pytest.raises(ContractError, match="expected rows of the kind demonstrations, found labelled; change --kind"):
        read_rows(tmp_path / "rows", tokens, kind="demonstrations")


def test_rows_without_their_meta_are_refused(tokens, tmp_path):
    write_table(tmp_path / "rows", read_table(tmp_path / "rows", TRAINING_ROWS), TRAINING_ROWS)

    with pytest.raises(ContractError, match="expected rows of the kind labelled, found None"):
        read_rows(tmp_path / "rows", tokens, kind="labelled")


@pytest.mark.parametrize("places", [[2, 0], [1], [0, 0, 1], []])
def test_a_filter_or_a_mixture_hands_on_the_rows_that_it_keeps(tokens, tmp_path, places):
    whole = read_rows(tmp_path / "rows", tokens, kind="labelled").of_split("train").columns()
    meta = read_manifest(tmp_path / "rows", TRAINING_ROWS)["meta"]
    table = read_table(tmp_path / "rows", TRAINING_ROWS).take(pa.array(places, pa.int64()))

    write_table(tmp_path / "filtered", table, TRAINING_ROWS, meta=meta)

    found = read_rows(tmp_path / "filtered", tokens, kind="labelled").of_split("train")
    assert found.columns().to_pylist() == whole.take(pa.array(places, pa.int64())).to_pylist()
    assert len(found.dataset()) == len(places)


def test_a_weight_that_a_filter_changes_is_the_weight(tokens, tmp_path):
    meta = read_manifest(tmp_path / "rows", TRAINING_ROWS)["meta"]
    table = read_table(tmp_path / "rows", TRAINING_ROWS)
    weights = pa.array([0.25, 0.5, 1.0, 1.0], pa.float32())

    write_table(
        tmp_path / "weighted",
        table.set_column(table.column_names.index("weight"), "weight", weights),
        TRAINING_ROWS,
        meta=meta,
    )

    found = read_rows(tmp_path / "weighted", tokens, kind="labelled").of_split("train").dataset()
    assert found["weight"][:] == [0.25, 0.5, 1.0]


def test_a_split_without_rows_gives_an_empty_dataset(tmp_path):
    path, _ = artifacts(tmp_path, [vote("p", None)])

    rows = kept(tmp_path, demonstration_rows(path), path, "demonstrations")

    assert len(rows.of_split("test").dataset()) == 0
    assert list(rows.of_split("train").texts()["row_id"]) == [pa.scalar("row0")]
