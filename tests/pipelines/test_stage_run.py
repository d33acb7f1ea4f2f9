"""What a flow says of a stage that failed, and what it does once nobody can see it."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from pipelines import flows
from pipelines.processes import ProcessGroups
from pipelines.stage_run import MESSAGE_LENGTH, _Seen


@pytest.mark.parametrize("ending", [["ERROR: failed to run: python, exited with 1"], []])
def test_a_long_line_of_a_stage_is_cut_in_its_message(ending):
    seen = _Seen()
    for line in ["x" * 1_500_000, *ending]:
        seen.add(line)

    message = str(seen.error("counts", 255))

    assert len(message) < MESSAGE_LENGTH + 200
    assert message.endswith("(1,498,000 characters more; the log of the run has the line)")


def watched(monkeypatch, answers):
    """What became of the processes of a run, of which a server gave these answers."""
    monkeypatch.setattr(flows, "WATCH_EVERY_S", 0.001)
    groups, over = ProcessGroups(), threading.Event()

    def read_flow_run(_run_id):
        answer = answers.pop(0) if answers else over.set()
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=None)

    @contextmanager
    def client(**_):
        yield SimpleNamespace(read_flow_run=read_flow_run)

    monkeypatch.setattr(flows, "get_client", client)
    flows._watch({str(uuid4())}, groups, over)
    return groups


def test_a_run_that_was_deleted_ends_its_stages(monkeypatch):
    deleted = ObjectNotFound(httpx.HTTPStatusError("404", request=None, response=None))

    groups = watched(monkeypatch, [None, deleted])

    assert groups.stopping.is_set()
    assert groups.reason == "its run was deleted in Prefect"


def test_a_server_that_is_away_ends_nothing(monkeypatch):
    groups = watched(monkeypatch, [httpx.ConnectError("away"), None])

    assert not groups.stopping.is_set()
