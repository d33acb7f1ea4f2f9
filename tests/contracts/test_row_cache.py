"""Results per row that are computed once, across runs, kills and damage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from stages.contracts.row_cache import _append, _read_shards, cached_rows, code_fingerprint, row_keys

ROOT = Path(__file__).resolve().parents[2]


class Doubler:
    """Doubles a column and counts the rows that it is handed; fails after some calls if asked to."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen: list[int] = []
        self.calls = 0
        self.fail_after = fail_after

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        values = rows["x"].to_pylist()
        self.seen.extend(values)
        lists = pa.array([[v] * (v % 3) for v in values], pa.list_(pa.int64()))
        return pa.table({"double": pa.array([2 * v for v in values], pa.int64()), "list": lists})


def run(values, compute, memo, **options):
    table = pa.table({"x": pa.array(values, pa.int64()), "note": [f"row {i}" for i in range(len(values))]})
    arguments = {"memo": memo, "fingerprint": "f", "key_columns": ["x"], "progress": "test", "flush_rows": 4}
    return cached_rows(table, compute, **(arguments | options))


def test_results_stand_in_the_order_of_the_rows(tmp_path):
    result = run([5, 1, 3], Doubler(), tmp_path)

    assert result.to_pydict() == {"double": [10, 2, 6], "list": [[5, 5], [1], []]}


def test_equal_rows_are_computed_once(tmp_path):
    compute = Doubler()

    result = run([1, 2, 1, 1, 2], compute, tmp_path)

    assert compute.seen == [1, 2]
    assert result["double"].to_pylist() == [2, 4, 2, 2, 4]


def test_a_second_run_computes_nothing_and_gives_the_same_table(tmp_path):
    first = run(range(10), Doubler(), tmp_path)
    compute = Doubler()

    second = run(range(10), compute, tmp_path)

    assert compute.seen == []
    assert second.equals(first)
    assert run(range(10), Doubler(), None).equals(first)


@pytest.mark.parametrize("values", [[*range(10), 10, 11], [3, 99, 4, 0], [9, 8, 7]])
def test_after_rows_were_added_edited_or_removed_only_new_ones_are_computed(tmp_path, values):
    run(range(10), Doubler(), tmp_path)
    compute = Doubler()

    result = run(values, compute, tmp_path)

    assert compute.seen == [value for value in values if value > 9]
    assert result.equals(run(values, Doubler(), None))


def test_columns_outside_the_key_change_nothing(tmp_path):
    run([1, 2], Doubler(), tmp_path)
    compute = Doubler()
    table = pa.table({"x": pa.array([1, 2], pa.int64()), "note": ["other", "words"]})

    cached_rows(table, compute, memo=tmp_path, fingerprint="f", key_columns=["x"], progress="test")

    assert compute.seen == []


def test_another_fingerprint_shares_nothing(tmp_path):
    run([1, 2], Doubler(), tmp_path)
    compute = Doubler()

    run([1, 2], compute, tmp_path, fingerprint="g")

    assert compute.seen == [1, 2]


def test_a_run_that_broke_off_goes_on_after_what_it_flushed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(range(10), Doubler(fail_after=2), tmp_path)
    compute = Doubler()

    result = run(range(10), compute, tmp_path)

    assert compute.seen == [8, 9]
    assert result.equals(run(range(10), Doubler(), None))


def test_the_costliest_rows_are_computed_first(tmp_path):
    compute = Doubler()

    result = run([1, 2, 3, 4, 5, 6], compute, tmp_path, costs=[3, 9, 3, 1, 9, 5])

    assert compute.seen == [2, 5, 6, 1, 3, 4]
    assert result["double"].to_pylist() == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_damaged_shard_is_named_and_computed_again(tmp_path, damage, capsys):
    expected = run(range(10), Doubler(), tmp_path)
    shard = sorted((tmp_path / "f").glob("*.arrow"))[0]
    shard.write_bytes(damage(shard.read_bytes()))
    compute = Doubler()

    result = run(range(10), compute, tmp_path)

    assert 2 <= len(compute.seen) <= 4
    assert result.equals(expected)
    assert f"{shard.name} of the row memo is damaged" in capsys.readouterr().out
    again = Doubler()
    run(range(10), again, tmp_path)
    assert again.seen == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process maps is read as Linux tells it")
def test_small_shards_take_none_of_the_files_that_a_process_may_map(tmp_path):
    for x in range(20):
        _append(tmp_path, pa.table({"x": [x]}))

    tables = _read_shards(tmp_path, "test")

    assert sorted(table["x"][0].as_py() for table in tables) == list(range(20))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_half_written_file_is_never_read(tmp_path):
    run([1], Doubler(), tmp_path)
    (tmp_path / "f" / ".abc.arrow.1.tmp").write_bytes(b"half")

    assert run([1], Doubler(), tmp_path)["double"].to_pylist() == [2]


def test_an_empty_table_gives_an_empty_result_with_columns(tmp_path):
    result = run([], Doubler(), tmp_path)

    assert result.num_rows == 0
    assert result.column_names == ["double", "list"]


def test_counts_are_printed(tmp_path, capsys):
    run([1, 2, 2], Doubler(), tmp_path)
    run([1, 2, 7], Doubler(), tmp_path)

    lines = capsys.readouterr().out.splitlines()
    assert lines == ["test: 1 rows cached or repeated, 2 to compute", "test: 2 rows cached or repeated, 1 to compute"]


def test_a_result_for_each_row_is_required(tmp_path):
    with pytest.raises(ValueError, match="test: expected 2 results without a column row_key, found 1"):
        run([1, 2], lambda rows: pa.table({"y": [1]}), tmp_path)


def test_keys_tell_values_types_and_columns_apart():
    table = pa.table({"a": ["1", "1", "12", None], "b": ["2", "2", "", "2"]})

    keys = row_keys(table, ["a", "b"]).to_pylist()

    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert row_keys(pa.table({"a": [1], "b": ["2"]}), ["a", "b"]).to_pylist()[0] not in keys


def test_a_fingerprint_of_code_covers_what_the_module_imports():
    assert code_fingerprint("stages.contracts.rows") == code_fingerprint("stages.contracts.rows")
    assert code_fingerprint("stages.contracts.rows") != code_fingerprint("stages.contracts.row_cache")


def test_after_kill_9_the_next_run_computes_only_the_rest(tmp_path):
    program = (
        "import sys, time, pyarrow as pa\n"
        "from pathlib import Path\n"
        "from stages.contracts.row_cache import cached_rows\n"
        "def compute(rows):\n"
        "    time.sleep(0.05)\n"
        "    return pa.table({'double': pa.array([2 * v for v in rows['x'].to_pylist()])})\n"
        "cached_rows(pa.table({'x': list(range(2000))}), compute, memo=Path(sys.argv[1]), fingerprint='f',\n"
        "            key_columns=['x'], progress='child', flush_rows=4)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "f").glob("*.arrow"))) < 3:
        time.sleep(0.02)
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    flushed = len(list((tmp_path / "f").glob("*.arrow"))) * 4
    seen: list[int] = []

    def compute(rows):
        seen.extend(rows["x"].to_pylist())
        return pa.table({"double": pa.array([2 * v for v in rows["x"].to_pylist()])})

    result = run(range(2000), compute, tmp_path, flush_rows=500)

    assert seen == list(range(flushed, 2000))
    assert result["double"].to_pylist() == [2 * value for value in range(2000)]
