"""Engines: the same results in the same order from one process, from several, and from Ray."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from stages.contracts.closure import ROOT
from stages.contracts.engines import chosen_engine, num_processes, run_missing
from stages.contracts.row_cache import cached_rows
from stages.contracts.stage import StageFailure
from tests.contracts.workers import meet

ENGINES = ["inline", pytest.param("processes", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.long)]


@dataclass(frozen=True)
class Squares:
    """Squares of a column, with the process that computed them."""

    refused: int = -1
    meeting: Path | None = None
    """Folder in which two processes are waited for, so that none has done all before another is there."""

    @cached_property
    def load(self):
        """Something that is made once a process."""
        if self.meeting:
            (self.meeting / str(os.getpid())).touch()
            meet(self.meeting)
        return os.getpid()

    def __call__(self, rows):
        values = rows["x"].to_pylist()
        if self.refused in values:
            raise ValueError(f"expected other numbers, found {self.refused}")
        # The first pieces take longest, so that results come in another order than they are asked for.
        time.sleep(0.02 * (values[0] < 4))
        return pa.table({"square": [value**2 for value in values], "by": [self.load] * len(values)})


@dataclass(frozen=True)
class Dies:
    """A worker that the kernel kills."""

    def __call__(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class NamesItsDevice:
    """The device that a worker was told to compute on."""

    meeting: Path

    def __call__(self, rows):
        (self.meeting / str(os.getpid())).touch()
        meet(self.meeting)
        return pa.table({"device": [os.environ["PLUMBLINE_DEVICE"]] * len(rows)})


def pieces(number, size=4):
    table = pa.table({"x": list(range(number))})
    return [table.slice(start, size) for start in range(0, number, size)]


@pytest.fixture(autouse=True)
def _two_workers(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_PROCESSES", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def _ray_ends():
    yield
    import ray

    ray.shutdown()


@pytest.mark.parametrize("engine", ENGINES)
def test_results_come_in_the_order_of_the_rows(engine, tmp_path):
    meeting = None if engine == "inline" else tmp_path
    found = pa.concat_tables(run_missing(pieces(30), Squares(meeting=meeting), engine=engine))

    assert found["square"].to_pylist() == [x**2 for x in range(30)]
    if engine == "inline":
        assert set(found["by"].to_pylist()) == {os.getpid()}
    else:
        assert os.getpid() not in found["by"].to_pylist()
        assert len(set(found["by"].to_pylist())) == 2


@pytest.mark.parametrize("engine", ["inline", "processes", "ray"])
def test_nothing_to_do_is_done(engine):
    assert list(run_missing([], Squares(), engine=engine)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_a_row_is_the_error_of_the_run(engine):
    with pytest.raises(ValueError, match="^expected other numbers, found 9$"):
        list(run_missing(pieces(30), Squares(refused=9), engine=engine))


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_the_memo_holds_the_same_whatever_engine_computed(engine, tmp_path, monkeypatch):
    table = pa.table({"x": [5, 1, 3, 3, 8, 2, 9, 7]})
    arguments = {"fingerprint": "f", "key_columns": ["x"], "progress": "test", "flush_rows": 2}
    monkeypatch.setenv("PLUMBLINE_ENGINE", engine)

    first = cached_rows(table, Squares(), memo=tmp_path, costs=[1, 2, 3, 3, 4, 5, 6, 7], **arguments)
    second = cached_rows(table, Squares(refused=5), memo=tmp_path, **arguments)

    assert first["square"].to_pylist() == [25, 1, 9, 9, 64, 4, 81, 49]
    assert second.equals(first)


@pytest.mark.slow
def test_says_that_a_worker_was_killed():
    with pytest.raises(StageFailure, match="one of 2 workers was killed, probably for lack of memory"):
        list(run_missing(pieces(8), Dies(), engine="processes"))


ORPHANS = """
import sys
from pathlib import Path

import pyarrow as pa

from stages.contracts.engines import run_missing
from tests.contracts.workers import Waits

if __name__ == "__main__":
    list(run_missing([pa.table({"x": [1]})] * 8, Waits(Path(sys.argv[1])), engine="processes"))
"""


@pytest.mark.slow
def test_no_worker_outlives_its_stage(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    folder = tmp_path / "workers"
    folder.mkdir()
    words = [sys.executable, str(tmp_path / "orphans.py"), str(folder)]
    stage = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    meet(folder)
    workers = [psutil.Process(int(file.name)) for file in folder.iterdir()]

    stage.kill()
    stage.wait()

    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


@pytest.mark.slow
def test_workers_share_out_the_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBLINE_WORKER_DEVICES", "cuda:0,cuda:1")

    found = pa.concat_tables(run_missing(pieces(16), NamesItsDevice(tmp_path), engine="processes"))

    assert set(found["device"].to_pylist()) == {"cuda:0", "cuda:1"}


def test_the_environment_names_the_engine(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_ENGINE", "ray")
    assert chosen_engine(1) == "ray"
    monkeypatch.setenv("PLUMBLINE_ENGINE", "spark")

    with pytest.raises(ValueError, match="expected PLUMBLINE_ENGINE as one of inline, processes, ray, found 'spark'"):
        chosen_engine(1)


def test_many_rows_go_to_processes_unasked(monkeypatch):
    monkeypatch.delenv("PLUMBLINE_ENGINE", raising=False)

    assert chosen_engine(10**9) == "inline"
    assert chosen_engine(99, rows_worth_processes=100) == "inline"
    assert chosen_engine(100, rows_worth_processes=100) == "processes"
    monkeypatch.setenv("PLUMBLINE_PROCESSES", "1")
    assert chosen_engine(100, rows_worth_processes=100) == "inline"


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_the_number_of_workers_is_checked(monkeypatch, text):
    monkeypatch.setenv("PLUMBLINE_PROCESSES", text)

    with pytest.raises(ValueError, match="PLUMBLINE_PROCESSES as a positive number"):
        num_processes()


def test_says_that_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(ValueError, match=r"PLUMBLINE_ENGINE=ray: expected the package ray.*-e '\.\[ray\]' in"):
        list(run_missing(pieces(4), Squares(), engine="ray"))
