"""Files are written whole or not at all, and equal content has equal bytes and digests."""

import shutil

import pytest

from stages.contracts.files import remove_folder, tree_digest, tree_stamp, write_json, write_text, written_beside


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    with pytest.raises(OSError, match="disk"), written_beside(path) as beside:
        beside.write_text("half")
        raise OSError("disk full")

    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_json_is_the_same_bytes_whatever_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", {"loss": float("nan")})

    assert not (tmp_path / "a").exists()


def test_the_digest_of_a_folder_follows_names_and_bytes_and_not_times(tmp_path):
    for name in ("x", "y"):
        write_text(tmp_path / name / "sub" / "a", "1")
    assert tree_digest(tmp_path / "x") == tree_digest(tmp_path / "y")
    assert tree_stamp(tmp_path / "x") != tree_stamp(tmp_path / "y")

    (tmp_path / "y" / "sub" / "a").rename(tmp_path / "y" / "sub" / "b")

    assert tree_digest(tmp_path / "x") != tree_digest(tmp_path / "y")


def test_a_folder_whose_removal_is_cut_short_is_no_longer_there(tmp_path, monkeypatch):
    write_text(tmp_path / "checkpoint-2" / "weights", "1")
    remove = shutil.rmtree

    def killed(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_folder(tmp_path / "checkpoint-2")

    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-2.tmp-gone"]
    assert shutil.rmtree is remove
    write_text(tmp_path / "checkpoint-2" / "weights", "1")
    remove_folder(tmp_path / "checkpoint-2")
    remove_folder(tmp_path / "checkpoint-2")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_named_by_their_places(tmp_path):
    values = {"loss": {"policy": [1.0, float("nan")]}, "kl": float("-inf"), "steps": 3}

    with pytest.raises(ValueError, match=r"found others at loss/policy\[1\] \(nan\), kl \(-inf\)"):
        write_json(tmp_path / "metrics.json", values)
