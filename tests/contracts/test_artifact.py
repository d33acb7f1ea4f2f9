"""Artifacts: same rows same bytes, and nothing damaged, missing or foreign is ever read."""

import json
from contextlib import suppress

import datasets
import pyarrow as pa
import pytest

from stages.contracts import artifact
from stages.contracts.artifact import ArtifactWriter, ContractError, read_manifest, read_table, schema, write_table
from stages.contracts.prompt_embeddings import PROMPT_EMBEDDINGS

THINGS = schema("things", 2, [pa.field("name", pa.string(), nullable=False), pa.field("ids", pa.list_(pa.int32()))])


def things(count):
    return pa.table({"name": [f"n{i}" for i in range(count)], "ids": [list(range(i % 5)) for i in range(count)]})


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_reads_back_what_was_written(tmp_path):
    write_table(tmp_path / "a", things(7), THINGS, meta={"width": 3})

    table = read_table(tmp_path / "a", THINGS)

    assert table.to_pylist() == things(7).to_pylist()
    assert read_manifest(tmp_path / "a", THINGS)["meta"] == {"width": 3}


def test_bytes_do_not_depend_on_slicing_chunking_or_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SHARD_ROWS", 8)
    monkeypatch.setattr(artifact, "BATCH_ROWS", 3)
    whole = things(21)
    chunked = pa.concat_tables([things(25).slice(0, 4), things(25).slice(4, 17)])
    write_table(tmp_path / "whole", whole, THINGS)
    write_table(tmp_path / "chunked", chunked, THINGS)
    with ArtifactWriter(tmp_path / "calls", THINGS) as writer:
        for start in range(0, 21, 5):
            writer.write(whole.slice(start, 5))

    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "chunked") == bytes_of(tmp_path / "calls")
    assert len(bytes_of(tmp_path / "whole")) == 4  # three shards and the manifest


def test_an_appended_row_changes_the_last_shard_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SHARD_ROWS", 8)
    write_table(tmp_path / "old", things(20), THINGS)
    write_table(tmp_path / "new", things(21), THINGS)

    old, new = bytes_of(tmp_path / "old"), bytes_of(tmp_path / "new")

    assert {name for name in new if old[name] != new[name]} == {"part-00002.arrow", "manifest.json"}


def test_an_empty_table_is_an_artifact_too(tmp_path):
    write_table(tmp_path / "a", things(0), THINGS)

    assert read_table(tmp_path / "a", THINGS).num_rows == 0


def test_datasets_maps_a_shard_as_it_is(tmp_path):
    write_table(tmp_path / "a", things(5), THINGS)

    dataset = datasets.Dataset.from_file(str(tmp_path / "a" / "part-00000.arrow"))

    assert dataset["name"][:] == ["n0", "n1", "n2", "n3", "n4"]


@pytest.mark.parametrize("position", [0, 40, 200, -30, -1])
def test_a_flipped_bit_is_named_and_never_read(tmp_path, position):
    write_table(tmp_path / "a", things(9), THINGS)
    shard = tmp_path / "a" / "part-00000.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[position] ^= 4
    shard.write_bytes(damaged)

    with pytest.raises(ContractError, match=r"part-00000.arrow is damaged; delete the folder and rerun"):
        read_table(tmp_path / "a", THINGS)


def test_a_missing_shard_is_named(tmp_path):
    write_table(tmp_path / "a", things(9), THINGS)
    (tmp_path / "a" / "part-00000.arrow").unlink()

    with pytest.raises(ContractError, match="shard part-00000.arrow is missing"):
        read_table(tmp_path / "a", THINGS)


def test_another_version_is_refused_with_both_versions(tmp_path):
    write_table(tmp_path / "a", things(1), schema("things", 1, THINGS.fields))

    with pytest.raises(ContractError, match="expected things v2, found things v1; rerun its stage"):
        read_table(tmp_path / "a", THINGS)


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), ArtifactWriter(tmp_path / "a", THINGS) as writer:
        writer.write(things(3))
        raise RuntimeError("stop")

    with pytest.raises(ContractError, match=r"expected things, found no manifest.json"):
        read_table(tmp_path / "a", THINGS)


def test_a_manifest_cut_short_is_called_damaged(tmp_path):
    write_table(tmp_path / "a", things(1), THINGS)
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:30])

    with pytest.raises(ContractError, match="manifest.json is damaged"):
        read_table(tmp_path / "a", THINGS)


def test_no_flipped_bit_of_a_manifest_ends_in_anything_but_the_rows_or_a_sentence(tmp_path):
    write_table(tmp_path / "a", things(2), THINGS, meta={"counts": {"read": 3}})
    manifest, expected = tmp_path / "a" / "manifest.json", read_table(tmp_path / "a", THINGS).to_pylist()
    content = manifest.read_bytes()

    # Every seventh bit: every bit of a byte, and each byte but few. All were tried once.
    for place in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        manifest.write_bytes(flipped)
        with suppress(ContractError):
            assert read_table(tmp_path / "a", THINGS).to_pylist() == expected, place
            assert read_manifest(tmp_path / "a", THINGS)["meta"]["counts"] is not None


def test_a_fact_that_is_not_in_the_manifest_is_named(tmp_path):
    write_table(tmp_path / "a", things(1), THINGS, meta={"counts": 1})

    with pytest.raises(ContractError, match="a: expected losses in manifest.json, found none"):
        read_manifest(tmp_path / "a", THINGS)["meta"]["losses"]


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    write_table(tmp_path / "a", things(1), THINGS)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../part-00000.arrow"
    (tmp_path / "a" / "part-00000.arrow").rename(tmp_path / "part-00000.arrow")
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(ContractError, match="missing"):
        read_table(tmp_path / "a", THINGS)


def test_wrong_columns_and_forbidden_nulls_are_named(tmp_path):
    with pytest.raises(ContractError, match=r"missing \['ids'\], unknown \['id'\]"):
        write_table(tmp_path / "a", pa.table({"name": ["x"], "id": [1]}), THINGS)
    with pytest.raises(ContractError, match="1 rows have no name"):
        write_table(tmp_path / "a", pa.table({"name": pa.array([None], pa.string()), "ids": [[1]]}), THINGS)


def test_a_fixed_size_list_may_have_any_width(tmp_path):
    embedding = pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3))
    write_table(tmp_path / "a", pa.table({"prompt_id": ["p"], "embedding": embedding}), PROMPT_EMBEDDINGS)

    assert read_table(tmp_path / "a", PROMPT_EMBEDDINGS)["embedding"].to_pylist() == [[1.0, 2.0, 3.0]]
