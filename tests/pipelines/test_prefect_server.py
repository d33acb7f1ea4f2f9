"""The locked packages can start a Prefect server: with some pairs of prefect and fastapi its import fails."""

import pytest

from tests.prefect_server import PrefectServer


@pytest.mark.slow
def test_a_server_starts_on_loopback_and_answers(tmp_path):
    server = PrefectServer(tmp_path)
    try:
        assert server.answers()
        assert server.ask("flow_runs/count") == 0
    finally:
        server.stop()
