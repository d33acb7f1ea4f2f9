"""One flow at a time, and whoever waits is told for whom."""

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from pipelines.locks import LEFTOVER_GRACE_S, lock_holder, mend_notes, wait_for_leftovers, workspace_lock
from tests.prefect_server import wait_until


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


def test_a_holder_that_was_killed_is_known_to_the_next(lock):
    with workspace_lock("first", say=print, path=lock) as killed:
        assert killed is None
    lock.write_text(json.dumps({"pid": 1, "since": "then", "doing": "what was killed", "run_id": "7"}))

    with workspace_lock("second", say=print, path=lock) as killed:
        assert (killed.doing, killed.run_id) == ("what was killed", "7")
    with workspace_lock("third", say=print, path=lock) as killed:
        assert killed is None


def test_a_process_that_dvc_still_notes_is_waited_for_and_a_dead_one_is_not(tmp_path):
    note = tmp_path / "rwlock"
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.7)"])
    note.write_text(json.dumps({"read": {"a": [{"pid": alive.pid, "cmd": "dvc"}]}, "write": {}}))
    reaper = threading.Thread(target=alive.wait)
    reaper.start()

    start = time.monotonic()
    wait_for_leftovers(threading.Event(), note)
    waited_s = time.monotonic() - start
    reaper.join()
    start = time.monotonic()
    wait_for_leftovers(threading.Event(), note)
    wait_for_leftovers(threading.Event(), tmp_path / "none")

    assert 0.1 < waited_s < LEFTOVER_GRACE_S
    assert time.monotonic() - start < LEFTOVER_GRACE_S


@pytest.mark.parametrize(("text", "mended"), [("", True), ('{"read"', True), ("{}", False), (None, False)])
def test_a_note_of_dvc_that_was_cut_off_is_removed(tmp_path, text, mended):
    note = tmp_path / "rwlock"
    if text is not None:
        note.write_text(text)

    assert mend_notes(note) is mended
    assert note.exists() == (text == "{}")


def test_dead_processes_are_taken_out_of_the_note_and_living_ones_stay(tmp_path):
    # Nobody reaps the first one, so it is a zombie, which exists.
    dead = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: psutil.Process(dead.pid).status() == psutil.STATUS_ZOMBIE)
    gone, alive = {"pid": dead.pid, "cmd": "dvc"}, {"pid": os.getpid(), "cmd": "dvc"}
    note = tmp_path / "rwlock"
    note.write_text(json.dumps({"read": {"a": [gone, alive]}, "write": {"b": gone, "c": alive}}))

    assert mend_notes(note)

    assert json.loads(note.read_text()) == {"read": {"a": [alive]}, "write": {"c": alive}}
    assert not mend_notes(note)
    dead.wait()


def test_without_a_repository_the_root_is_named(tmp_path):
    lock = workspace_lock("first", say=print, path=tmp_path / ".dvc" / "tmp" / "flow.lock")

    with pytest.raises(ValueError, match="expected a DVC repository"):
        lock.__enter__()
