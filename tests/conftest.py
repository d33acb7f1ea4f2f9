"""What tests of all folders share: one Prefect server and one demo, however many workers a session has."""

import fcntl
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings

from tests.prefect_server import PrefectServer, run_flow, wait_until
from tests.workspace import DEMO_GATE, SMALL, Workspace

NOTE = "made.json"

# How long an example takes says how busy the machine is.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other workers out meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` notes of what it makes, or of what another worker made."""
    with alone(folder):
        note = folder / NOTE
        if not note.exists():
            note.write_text(json.dumps(make()))
        found: dict[str, Any] = json.loads(note.read_text())
    return found


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of this session have in common."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"


@pytest.fixture(scope="session")
def server(session_folder: Path, request: pytest.FixtureRequest) -> PrefectServer:
    """What `make ui` starts in the workspace of the demo; the session has one, which ends with it."""
    folder = session_folder / "server"

    def make() -> dict[str, Any]:
        workspace = Workspace(session_folder / "demo" / "project", SMALL)
        workspace.set_params(DEMO_GATE)
        started = PrefectServer.start(folder / "home", workspace=workspace)
        wait_until((workspace.root / ".cache/prefect/server.json").exists)
        # New data of a test's workspace is none of the demo's.
        early = wait_until(lambda: started.ask("automations/filter"))[0]
        # A server that has just started is busy, and says so with 503.
        address = f"{started.api_url}/automations/{early['id']}"
        wait_until(lambda: httpx.delete(address, timeout=30).status_code in {204, 404})
        return {"port": started.port, "pid": started.pid}

    found = made_once(folder, make)
    return PrefectServer(folder / "home", found["port"], found["pid"])


@pytest.fixture(scope="session")
def demo(session_folder: Path, server: PrefectServer) -> Workspace:
    """The workspace that `make ui` was started in: what runs there finds the server without being told where it is."""
    workspace = Workspace(session_folder / "demo" / "project")
    workspace.environment.update(server.environment)
    del workspace.environment["PREFECT_API_URL"]
    return workspace


@pytest.fixture(scope="session")
def first_run(session_folder: Path, demo: Workspace) -> str:
    """Id of the flow run that did everything of BCO in the demo's workspace."""
    found: str = made_once(session_folder / "first_run", lambda: {"id": run_flow(demo, "bco")})["id"]
    return found


@pytest.fixture(scope="session")
def reproduced(demo: Workspace, first_run: str) -> Workspace:
    """The demo's workspace once BCO's graph was run in it; tests clone it."""
    return demo


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through what was imported: each training asks for one, of half a second else."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the server, where there was one, once all workers are through."""
    if hasattr(session.config, "workerinput"):
        return
    base = session.config._tmp_path_factory.getbasetemp()
    note = base / "session" / "server" / NOTE
    if note.exists():
        found = json.loads(note.read_text())
        PrefectServer(note.parent / "home", found["port"], found["pid"]).stop()
