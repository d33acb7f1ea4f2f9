"""One flow at a time, and whoever waits is told for whom."""

import os
import threading

import pytest

from pipelines.locks import lock_holder, workspace_lock


@pytest.fixture
def lock(tmp_path):
    (tmp_path / ".dvc").mkdir()
    return tmp_path / ".dvc" / "tmp" / "flow.lock"


def test_the_holder_is_known_while_it_holds(lock):
    with workspace_lock("brave-lion (bco)", say=print, path=lock):
        holder = lock_holder(lock)

    assert holder.pid == os.getpid()
    assert holder.sentence().endswith("runs brave-lion (bco)")
    assert lock_holder(lock) is None


def test_nobody_holds_a_lock_that_was_never_taken(lock):
    assert lock_holder(lock) is None


def test_a_second_one_waits_and_is_told_for_what(lock):
    said = []
    told, entered, over = threading.Event(), threading.Event(), threading.Event()

    def second():
        with workspace_lock("second", say=lambda text: (said.append(text), told.set()), path=lock):
            entered.set()
        over.set()

    with workspace_lock("first", say=print, path=lock):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(5)
        assert not entered.is_set()

    assert over.wait(5)
    thread.join()
    assert len(said) == 1
    assert said[0].startswith(f"waiting for process {os.getpid()}, which since ")
    assert said[0].endswith("runs first")


def test_waiting_ends_when_the_flow_stops(lock):
    stopping = threading.Event()

    with workspace_lock("first", say=print, path=lock):
        second = workspace_lock("second", say=lambda _: stopping.set(), stopping=stopping, path=lock)
        with pytest.raises(InterruptedError, match="stopped while waiting"):
            second.__enter__()
        assert lock_holder(lock).doing == "first"


def test_without_a_repository_the_root_is_named(tmp_path):
    lock = workspace_lock("first", say=print, path=tmp_path / ".dvc" / "tmp" / "flow.lock")

    with pytest.raises(ValueError, match="expected a DVC repository"):
        lock.__enter__()
