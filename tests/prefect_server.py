"""A real Prefect server with a database of its own, and what tests ask it."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from tests.workspace import Workspace

T = TypeVar("T")
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Servers that this process started, by their ids."""
RUN_PAGE = re.compile(r"/runs/flow-run/([0-9a-f-]{36})")


def _answer(call: Callable[[], httpx.Response]) -> Any:
    """What a request is answered with; a server whose database is busy is asked again, as Prefect's client does."""
    for _ in range(20):
        answer = call()
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(0.5)
    answer.raise_for_status()
    return answer.json()


class PrefectServer:
    """A server that runs.

    Args:
        home: folder with its database and settings.
        port: where it listens.
        pid: of its process.
        settings: further settings, by the name of their variable.
    """

    def __init__(self, home: Path, port: int, pid: int, **settings: str) -> None:
        self.pid = pid
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api_url = f"{self.url}/api"
        self.log = home / "server.log"
        self.environment = {**_settings(home, **settings), "PREFECT_API_URL": self.api_url}

    @classmethod
    def start(
        cls, home: Path, *, host: str = "127.0.0.1", workspace: Workspace | None = None, **settings: str
    ) -> "PrefectServer":
        """Start one and wait until it answers; it ends with `stop`.

        Args:
            home: folder for its database and settings.
            host: address to listen on.
            workspace: start it there with `python -m pipelines ui`, which also serves the nightly run.
            settings: further settings, by the name of their variable.
        """
        home.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = ["pipelines", "ui"] if workspace else ["prefect", "server", "start"]
        with (home / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--host", host, "--port", str(port)],
                cwd=workspace.root if workspace else home,
                env={**(workspace.environment if workspace else os.environ), **_settings(home, **settings)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _CHILDREN[process.pid] = process
        started = cls(home, port, process.pid, **settings)
        try:
            started.wait_until(started.answers, timeout_s=120)
        except BaseException:
            started.stop()
            raise
        return started

    def answers(self) -> bool:
        """Whether it is up; fails if it never will be."""
        assert psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE, self.log.read_text()
        try:
            return httpx.get(f"{self.api_url}/health", timeout=5).text == "true"
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End it and wait for its end."""
        with suppress(psutil.NoSuchProcess):
            end(psutil.Process(self.pid))
        if self.pid in _CHILDREN:
            _CHILDREN.pop(self.pid).wait()

    def ask(self, path: str, **body: Any) -> Any:
        """What the server answers to a POST."""
        return _answer(lambda: httpx.post(f"{self.api_url}/{path}", json=body, timeout=30))

    def read(self, path: str) -> Any:
        """What the server answers to a GET."""
        return _answer(lambda: httpx.get(f"{self.api_url}/{path}", timeout=30))

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run."""
        found: dict[str, Any] = self.read(f"flow_runs/{run_id}")
        return found

    def deployment(self, name: str) -> dict[str, Any] | None:
        """The deployment of that name, if there is one."""
        found: list[dict[str, Any]] = self.ask("deployments/filter", deployments={"name": {"any_": [name]}})
        return found[0] if found else None

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment, newest first."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", deployments={"name": {"any_": [deployment]}}, sort="EXPECTED_START_TIME_DESC"
        )
        return found

    def states(self, run_id: str) -> dict[str, str]:
        """Name of the state of each task of a flow run, once the run and all of them ended.

        The server learns of a task's states a little after they came about.
        """

        def ended() -> dict[str, str] | None:
            tasks = self.ask("task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
            final = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
            if self.run(run_id)["state_type"] in final and tasks and all(task["state_type"] in final for task in tasks):
                return {task["name"]: task["state_name"] for task in tasks}
            return None

        return self.wait_until(ended)

    def messages(self, run_id: str) -> dict[str, str]:
        """Message of the state of each task of a flow run."""
        self.states(run_id)
        tasks = self.ask("task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
        return {task["name"]: task["state"]["message"] or "" for task in tasks}

    def lines(self, run_id: str) -> list[str]:
        """What the run and its tasks logged."""
        logs = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, sort="TIMESTAMP_ASC", limit=200)
        return [log["message"] for log in logs]

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Artifacts of a run, by key."""
        found = self.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found}

    def wait_until(self, look: Callable[[], T | None], *, timeout_s: float = 60) -> T:
        """Look until there is something to see."""
        return wait_until(look, timeout_s=timeout_s)


def _settings(home: Path, **settings: str) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **settings,
    }


def end(process: psutil.Process) -> None:
    """Terminate a process, kill it if it doesn't hear that, and wait for its end."""
    gone = lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE  # noqa: E731
    process.terminate()
    try:
        wait_until(gone, timeout_s=30)
    except AssertionError:
        process.kill()
        wait_until(gone, timeout_s=30)


def wait_until(look: Callable[[], T | None], *, timeout_s: float = 60, every_s: float = 0.1) -> T:
    """Look until there is something to see, and give it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(every_s)
    return found


def run_id_in(log: str) -> str:
    """Id of the flow run whose page a log names."""
    found = RUN_PAGE.search(log)
    assert found, log
    return found[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_flow(workspace: Workspace, *words: str, status: int = 0) -> str:
    """Run the flow, which must end with this status; gives the id of its run."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", *words],
        cwd=workspace.root,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return run_id_in(done.stdout)
