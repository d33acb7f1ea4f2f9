"""The flow against a real server and real DVC: states, what it shows, schedules, events, messages, speed."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stages.contracts.stage import EXIT_GATE, EXIT_REJECTED
from tests.counting import Counting, copy_of
from tests.prefect_server import PrefectServer, run_id_in, wait_until
from tests.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = PrefectServer(
        tmp_path_factory.mktemp("prefect"),
        PREFECT_RUNNER_POLL_FREQUENCY="2",
    )
    yield started
    started.stop()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server):
    """Two chains, a > b > c and x > y, all run once."""
    workspace = Counting(
        tmp_path_factory.mktemp("finished") / "project",
        {"a": None, "b": "a", "c": "b", "x": None, "y": "x"},
        {"x": {"steps": 2}},
        server=server,
    )
    done = workspace.pipelines("run")
    assert done.returncode == 0, done.stdout
    workspace.first_run = run_id_in(done.stdout)
    return workspace


@pytest.fixture
def workspace(finished, tmp_path):
    """A finished workspace that a test may spoil."""
    return copy_of(finished, tmp_path / "project")


def run(workspace, *words):
    """Run the flow; gives its exit status and the id of its run."""
    done = workspace.pipelines("run", *words)
    return done.returncode, run_id_in(done.stdout)


def test_the_flow_has_the_stages_and_edges_of_dvc_yaml(server, finished):
    graph = wait_until(lambda: with_nodes(server, finished.first_run, 5))
    names = {node_id: node["label"] for node_id, node in graph["nodes"]}
    edges = {names[node_id]: {names[parent["id"]] for parent in node["parents"]} for node_id, node in graph["nodes"]}

    assert edges == {
        "count@a": set(),
        "count@b": {"count@a"},
        "count@c": {"count@b"},
        "count@x": set(),
        "count@y": {"count@x"},
    }


def with_nodes(server, run_id, count):
    graph = server.read(f"flow_runs/{run_id}/graph-v2")
    return graph if len(graph["nodes"]) == count else None


def test_lines_of_a_stage_are_logged_one_by_one_and_its_bar_is_not(server, finished):
    lines = wait_until(lambda: [line for line in server.lines(finished.first_run) if "step" in line])

    assert sorted(lines) == ["step 1 of 2"] * 5 + ["step 2 of 2"] * 5
    assert not [line for line in server.lines(finished.first_run) if "%|" in line]


def test_progress_metrics_table_and_graph_are_shown(server, finished):
    artifacts = server.artifacts(finished.first_run)

    assert artifacts["progress-count-a"]["type"] == "progress"
    assert artifacts["progress-count-a"]["data"] == 100
    assert json.loads(artifacts["metrics-count-a"]["data"]) == [
        {"metric": "total", "value": 2, "low": None, "high": None}
    ]
    assert "| count@c | Completed |" in artifacts["stages"]["data"]
    assert artifacts["graph"]["type"] == "image"


def test_nothing_new_is_cached_in_under_five_seconds_of_work(server, workspace):
    started = workspace.start("run")
    # Of this process and all that it started, unlike the sum over all children of the tests.
    _, status, used = os.wait4(started.process.pid, 0)
    started.process.returncode = os.waitstatus_to_exitcode(status)

    assert started.process.returncode == 0
    assert set(server.states(run_id_in(started.log())).values()) == {"Cached"}
    assert used.ru_utime + used.ru_stime < 5


def test_a_changed_stage_runs_and_what_follows_stops_where_the_result_is_the_same(server, workspace):
    status, run_id = run(workspace, "--set", "counts.a.step_s=0.01")

    assert status == 0
    assert server.states(run_id) == {
        "count@a": "Completed",
        "count@b": "Cached",
        "count@c": "Cached",
        "count@x": "Cached",
        "count@y": "Cached",
    }


def test_a_change_set_back_is_restored(server, workspace):
    run(workspace, "x", "--set", "counts.x.steps=3")
    status, run_id = run(workspace, "x", "--set", "counts.x.steps=2")

    assert status == 0
    assert server.states(run_id) == {"count@x": "Restored"}
    assert workspace.total("x") == 2


def test_what_follows_a_failed_stage_is_skipped_and_says_why(server, workspace):
    status, run_id = run(workspace, "--set", "counts.a.exit_status=3", "--set", "counts.x.steps=3")

    assert status == 1
    assert server.states(run_id) == {
        "count@a": "Failed",
        "count@b": "Skipped",
        "count@c": "Skipped",
        "count@x": "Completed",
        "count@y": "Completed",
    }
    messages = server.messages(run_id)
    assert messages["count@a"] == "count@a ended with 3: count: the count is not good enough"
    assert messages["count@c"] == "count@a failed"
    assert server.run(run_id)["state_name"] == "Failed"


def test_whatever_else_goes_wrong_fails_the_stage_and_lets_nothing_read_from_it(server, workspace):
    broken = workspace.root / "stages/measures/metric_rows.py"
    broken.write_text(
        broken.read_text() + "\n\ndef metric_rows(values):\n    raise AttributeError('a fault of ours')\n"
    )

    status, run_id = run(workspace, "c", "--set", "counts.a.steps=3")

    assert status == 1
    assert server.states(run_id) == {"count@a": "Failed", "count@b": "Skipped", "count@c": "Skipped"}
    assert "count@a: AttributeError: a fault of ours" in server.run(run_id)["state"]["message"]


def test_a_retry_goes_on_from_where_the_first_attempt_failed(server, workspace):
    workspace.set_params({"graph": {"x": {"retries": 1}}, "counts": {"x": {"steps": 4, "fails_at": 3}}})

    status, run_id = run(workspace, "x")

    assert status == 0
    assert server.states(run_id) == {"count@x": "Completed"}
    assert [line for line in server.lines(run_id) if line.startswith("counting")] == [
        "counting from 0",
        "counting from 3",
    ]
    assert workspace.total("x") == 4


def test_a_stage_that_takes_too_long_is_ended(server, workspace):
    workspace.set_params({"graph": {"x": {"timeout_s": 4}}, "counts": {"x": {"steps": 2, "step_s": 60}}})

    start = time.monotonic()
    status, run_id = run(workspace, "x")

    assert status == 1
    assert time.monotonic() - start < 40
    assert server.states(run_id) == {"count@x": "Failed"}
    assert server.messages(run_id)["count@x"] == "count@x took longer than 4 s and was ended"
    assert workspace.processes() == []


@pytest.fixture
def shared(workspace, tmp_path):
    """A workspace with a remote."""
    workspace.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    return workspace


def test_a_run_ends_with_a_push_from_which_another_clone_restores(server, shared, tmp_path):
    clone = copy_of(shared, tmp_path / "clone")
    shutil.rmtree(clone.root / ".dvc/cache")
    run(shared, "x", "--set", "counts.x.steps=3")
    status, run_id = run(shared, "x", "--set", "counts.x.steps=2")
    assert status == 0
    assert server.states(run_id) == {"count@x": "Restored", "dvc push": "Completed"}

    clone.set_params({"counts": {"x": {"steps": 3}}})
    log = clone.dvc("repro", "--pull", "--allow-missing", "count@x").stdout

    assert "is cached - skipping run" in log
    assert clone.total("x") == 3


def test_a_push_that_fails_fails_the_run_and_keeps_its_results(server, shared, tmp_path):
    (tmp_path / "store").write_text("no folder\n")

    status, run_id = run(shared, "x", "--set", "counts.x.steps=3")

    assert status == 1
    assert server.states(run_id) == {"count@x": "Completed", "dvc push": "Failed"}
    assert "the results stand here, but dvc push ended with" in server.run(run_id)["state"]["message"]
    assert shared.total("x") == 3


class Inbox(ThreadingHTTPServer):
    """Where messages arrive."""

    def __init__(self):
        self.messages = []
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.messages.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass


@pytest.fixture(scope="module")
def inbox(server):
    box = Inbox()
    kind = wait_until(lambda: block_type(server, "custom-webhook"))
    schema = server.ask("block_schemas/filter", block_schemas={"block_type_id": {"any_": [kind["id"]]}})[0]
    server.ask(
        "block_documents/",
        name="inbox",
        block_type_id=kind["id"],
        block_schema_id=schema["id"],
        data={
            "name": "inbox",
            "url": f"http://127.0.0.1:{box.server_port}",
            "json_data": {"subject": "{{subject}}", "body": "{{body}}"},
        },
    )
    yield box
    box.shutdown()
    box.server_close()


def block_type(server, slug):
    found = server.ask("block_types/filter", block_types={"slug": {"any_": [slug]}})
    return found[0] if found else None


@pytest.fixture(scope="module")
def served(server, finished, inbox, tmp_path_factory):
    """A workspace that is served every minute, on new data, and with messages."""
    workspace = copy_of(finished, tmp_path_factory.mktemp("served") / "project")
    serving = workspace.start("serve", "--cron", "* * * * *", "--on-data-update", "--notify", "custom-webhook/inbox")
    serving.wait_for("automation  plumbline: too much feedback was rejected")
    wait_until(lambda: server.ask("deployments/count") == 1)
    yield workspace
    serving.end()
    workspace.wait_for_nobody()


def test_new_data_starts_the_nightly_run_early(server, served):
    wait_until(lambda: server.ask("automations/count") == 3)
    known = {found["id"] for found in server.runs("nightly")}
    told = served.pipelines("data-updated", "12 new rows")

    assert "there is new feedback: 12 new rows" in told.stdout

    def started():
        fresh = [found for found in server.runs("nightly") if found["id"] not in known and not found["auto_scheduled"]]
        return [found for found in fresh if found["state_name"] == "Completed"]

    assert wait_until(started)


def test_the_schedule_starts_the_nightly_run(server, served):
    def started():
        runs = server.runs("nightly")
        return [found for found in runs if found["auto_scheduled"] and found["state_name"] == "Completed"]

    assert wait_until(started, timeout_s=120), served.root


@pytest.mark.parametrize(
    ("exit_status", "subject"),
    [(EXIT_GATE, "Plumbline: a gate failed"), (EXIT_REJECTED, "Plumbline: too much feedback was rejected")],
    ids=["gate failed", "data rejected"],
)
def test_a_message_is_sent(inbox, served, workspace, exit_status, subject):
    # With retries allowed, this also shows that such a stage is not run again: nothing would come of it.
    workspace.set_params({"graph": {"x": {"retries": 3}}, "counts": {"x": {"exit_status": exit_status}}})

    done = workspace.pipelines("run", "x")

    assert done.returncode == 1
    assert len(re.findall("Running stage", done.stdout)) == 1
    message = wait_until(lambda: [found for found in inbox.messages if found["subject"] == subject])[0]
    assert message["body"] == f"count@x ended with {exit_status}: count: the count is not good enough"


def test_a_worker_of_a_pool_runs_what_prefect_yaml_deploys(server, workspace):
    shutil.copy(ROOT / "prefect.yaml", workspace.root)
    environment = {**workspace.environment, "PLUMBLINE_ROOT": str(workspace.root)}

    def prefect(*words):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=workspace.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    prefect("work-pool", "create", "plumbline", "--type", "process")
    prefect("deploy", "--all")
    found = server.ask("deployments/filter", deployments={"name": {"any_": ["nightly-pool"]}})[0]
    assert found["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert found["global_concurrency_limit"]["limit"] == 1
    # What the schedule has planned for the coming nights is not for this worker.
    server.ask(f"deployments/{found['id']}/pause_deployment")
    run_id = server.ask(f"deployments/{found['id']}/create_flow_run", state={"type": "SCHEDULED"})["id"]
    prefect("worker", "start", "--pool", "plumbline", "--run-once")

    assert set(server.states(run_id).values()) == {"Cached"}


TWELVE = [f"s{number:02}" for number in range(12)]


def twelve_stages(root, server=None):
    return Counting(root, dict.fromkeys(TWELVE), {name: {"steps": 1, "step_s": 5} for name in TWELVE}, server=server)


@pytest.fixture(scope="module", autouse=True)
def one_after_the_other(request, tmp_path_factory):
    """`dvc repro` of twelve stages of 5 s, begun beside the other tests; gives how long it took."""
    if not any(item.path == request.path and "twelve" in item.name for item in request.session.items):
        yield
        return
    workspace = twelve_stages(tmp_path_factory.mktemp("sequential") / "project")
    walls = []

    def repro():
        start = time.monotonic()
        workspace.dvc("repro")
        walls.append(time.monotonic() - start)

    thread = threading.Thread(target=repro)
    thread.start()
    yield lambda: (thread.join(), walls[0])[1]
    thread.join()


def test_twelve_independent_stages_take_at_most_seven_tenths_of_dvc_repro(server, one_after_the_other, tmp_path):
    workspace = twelve_stages(tmp_path / "project", server)

    start = time.monotonic()
    done = workspace.pipelines("run", "-j", "4")
    wall_s = time.monotonic() - start

    assert done.returncode == 0, done.stdout
    assert wall_s <= 0.7 * one_after_the_other()
