"""The locked packages can start a Prefect server, and one that anybody may command is refused."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from pipelines import servers
from pipelines.servers import openings, own_addresses, refuse_open_host
from pipelines.serving import refuse_openings
from tests.prefect_server import PrefectServer

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- what these tests are about
ADDRESSES = own_addresses()


@pytest.fixture
def _reachable(monkeypatch):
    """An address beside that of the API, also on a machine that is on no network: all of 127/8 is this machine."""
    monkeypatch.setattr(servers, "own_addresses", lambda: ADDRESSES or ["127.0.0.2"])


class Relay(ThreadingHTTPServer):
    """The session's server, as it would answer if it listened at every address of this machine."""

    def __init__(self, server):
        self.server_url = server.url
        super().__init__((EVERYWHERE, 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.api_url = f"http://127.0.0.1:{self.server_port}/api"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = httpx.get(f"{self.server.server_url}{self.path}", timeout=30)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_):
            pass


@pytest.fixture
def relay(server):
    started = Relay(server)
    yield started
    started.shutdown()
    started.server_close()


@pytest.mark.slow
def test_a_server_starts_on_loopback_answers_and_is_closed_to_others(server):
    # With some pairs of prefect and fastapi its import fails.
    assert server.ask("flow_runs/count") >= 0
    assert openings(server.api_url) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_reachable")
def test_a_server_open_to_the_network_is_refused(server, relay):
    with pytest.raises(ValueError, match=r"answers anybody at http://.*PREFECT_SERVER_API_AUTH_STRING"):
        refuse_openings(relay.api_url)
    if not ADDRESSES:
        return
    doctor = subprocess.run(
        [sys.executable, "-m", "pipelines", "doctor"],
        cwd=ROOT,
        env={**os.environ, **server.environment, "PREFECT_API_URL": relay.api_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert doctor.returncode == 1
    assert "FAIL  server       anybody on the network may command http://" in doctor.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("_reachable")
def test_a_server_that_asks_for_a_password_is_not_refused(tmp_path):
    started = PrefectServer.start(tmp_path, host=EVERYWHERE, PREFECT_SERVER_API_AUTH_STRING="user:password")

    try:
        refuse_openings(started.api_url)
    finally:
        started.stop()


@pytest.mark.parametrize("host", [EVERYWHERE, "192.0.2.7", "example.org"])
def test_no_server_is_started_where_others_can_connect(host):
    with pytest.raises(ValueError, match="lets everybody on the network run commands here; listen on 127.0.0.1"):
        refuse_open_host(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_server_on_loopback_needs_no_password(host):
    refuse_open_host(host)
