"""Groups of processes end as a whole, the deaf ones too."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipelines import processes
from pipelines.output import Progress, is_worth_logging, progress_of, read_lines
from pipelines.processes import ProcessGroups
from tests.prefect_server import wait_until

DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be run by its name."""

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        return name

    return write


def test_a_group_that_hears_no_signal_is_killed_with_its_children(module, monkeypatch):
    monkeypatch.setattr(processes, "INTERRUPT_GRACE_S", 0.2)
    monkeypatch.setattr(processes, "TERMINATE_GRACE_S", 0.2)
    groups = ProcessGroups()
    process = groups.start(module("deaf", DEAF), [])
    lines = read_lines(process.stdout)
    assert next(lines) == "ready"
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert len(family) == 2

    start = time.monotonic()
    groups.stop("the test")

    assert time.monotonic() - start < 5
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family))
    groups.forget(process)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
def test_what_comes_up_after_its_parent_died_ends_at_once(module):
    name = module("lives_on", "print('alive')")
    # Of a process that died, children are the first process's.
    words = [sys.executable, "-m", "pipelines.leash", "1", name]

    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_nothing_starts_once_the_flow_stops():
    groups = ProcessGroups()
    groups.stop("cancelled in Prefect")
    groups.stop("and again")

    with pytest.raises(InterruptedError, match="cancelled in Prefect"):
        groups.start("this", [])


def test_lines_come_one_by_one_and_a_bar_each_time_it_is_drawn(module):
    groups = ProcessGroups()
    code = "import sys; sys.stdout.write('one\\nbar:  10%|#\\rbar: 100%|##\\ntwo'); sys.stdout.buffer.write(b'\\xff')"
    process = groups.start(module("writer", code), [])

    lines = list(read_lines(process.stdout))
    groups.forget(process)

    assert lines == ["one", "bar:  10%|#", "bar: 100%|##", "two\ufffd"]


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("base_model:  45%|####  | 9/20", Progress("base_model", 45.0)),
        (" 7%|# | 7/100", Progress("", 7.0)),
        ("accuracy 45% of rows", None),
        ("a line", None),
    ],
)
def test_a_progress_bar_is_read(line, progress):
    assert progress_of(line) == progress


def test_advice_of_dvc_is_not_logged():
    assert not is_worth_logging("")
    assert not is_worth_logging("To track the changes with git, run:")
    assert not is_worth_logging("\tgit add dvc.lock")
    assert is_worth_logging("Running stage 'a':")
