"""The flow against a real server and real DVC: states, what it shows, schedules, events, messages, order."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stages.contracts.stage import EXIT_GATE, EXIT_REJECTED
from tests.counting import Counting
from tests.prefect_server import run_id_in, wait_until
from tests.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server):
    """A chain, a > b > c, and x beside it, all run once."""
    workspace = Counting(
        tmp_path_factory.mktemp("finished") / "project",
        {"a": None, "b": "a", "c": "b", "x": None},
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
    return finished.clone(tmp_path / "project")


def run(workspace, *words):
    """Run the flow; gives its exit status and the id of its run."""
    done = workspace.pipelines("run", *words)
    return done.returncode, run_id_in(done.stdout)


def test_the_flow_has_the_stages_and_edges_of_dvc_yaml(server, finished):
    graph = wait_until(lambda: with_nodes(server, finished.first_run, 4))
    names = {node_id: node["label"] for node_id, node in graph["nodes"]}
    edges = {names[node_id]: {names[parent["id"]] for parent in node["parents"]} for node_id, node in graph["nodes"]}

    assert edges == {
        "count@a": set(),
        "count@b": {"count@a"},
        "count@c": {"count@b"},
        "count@x": set(),
    }


def with_nodes(server, run_id, count):
    graph = server.read(f"flow_runs/{run_id}/graph-v2")
    return graph if len(graph["nodes"]) == count else None


def test_lines_of_a_stage_are_logged_one_by_one_and_its_bar_is_not(server, finished):
    lines = wait_until(lambda: [line for line in server.lines(finished.first_run) if "step" in line])

    assert sorted(lines) == ["step 1 of 2"] * 4 + ["step 2 of 2"] * 4
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


REFUSING = """

def _refuse(*_, **__):
    raise AssertionError("a process was started")


ProcessGroups.start = _refuse
"""


def test_nothing_new_is_cached_and_no_process_is_started_to_find_that_out(server, workspace):
    processes = workspace.root / "pipelines/processes.py"
    processes.write_text(processes.read_text() + REFUSING)

    status, run_id = run(workspace)

    assert status == 0
    assert set(server.states(run_id).values()) == {"Cached"}
    # Had it started any, it would have failed.
    start = "from pipelines.processes import ProcessGroups; ProcessGroups().start('this', [])"
    assert "a process was started" in workspace.command(sys.executable, "-c", start, check=False).stderr


@pytest.fixture(scope="module")
def eventful(server, finished, inbox, served, tmp_path_factory):
    """A workspace, the log of a run in which a stage ends in each way that there is, and the id of that run."""
    workspace = finished.clone(tmp_path_factory.mktemp("eventful") / "project")
    workspace.add(
        {"fails": None, "next": "fails", "last": "next", "again": None, "late": None, "gate": None, "rejected": None},
        {
            "fails": {"exit_status": 3},
            "again": {"steps": 4, "fails_at": 3},
            "late": {"step_s": 60},
            "gate": {"exit_status": EXIT_GATE},
            "rejected": {"exit_status": EXIT_REJECTED},
        },
        # Where retries are allowed, a stage of which nothing would come is not run again all the same.
        {"again": {"retries": 1}, "late": {"timeout_s": 4}, "gate": {"retries": 3}, "rejected": {"retries": 3}},
    )
    done = workspace.pipelines("run", "--set", "counts.a.step_s=0.01")
    return workspace, done, run_id_in(done.stdout)


def test_each_stage_ends_in_a_state_of_its_own_and_the_run_fails(server, eventful):
    _, done, run_id = eventful

    assert done.returncode == 1
    assert server.states(run_id) == {
        # What follows a changed stage stops where the result is the same.
        "count@a": "Completed",
        "count@b": "Cached",
        "count@c": "Cached",
        "count@x": "Cached",
        "count@fails": "Failed",
        "count@next": "Skipped",
        "count@last": "Skipped",
        "count@again": "Completed",
        "count@late": "Failed",
        "count@gate": "Failed",
        "count@rejected": "Failed",
    }
    assert server.run(run_id)["state_name"] == "Failed"


def test_what_follows_a_failed_stage_is_skipped_and_says_why(server, eventful):
    messages = server.messages(eventful[2])

    assert messages["count@fails"] == "count@fails ended with 3: count: the count is not good enough"
    assert messages["count@next"] == messages["count@last"] == "count@fails failed"


def test_whatever_else_goes_wrong_fails_the_stage_and_lets_nothing_read_from_it(server, workspace):
    broken = workspace.root / "stages/measures/metric_rows.py"
    broken.write_text(
        broken.read_text() + "\n\ndef metric_rows(values):\n    raise AttributeError('a fault of ours')\n"
    )

    status, run_id = run(workspace, "c", "--set", "counts.a.steps=3")

    assert status == 1
    assert server.states(run_id) == {"count@a": "Failed", "count@b": "Skipped", "count@c": "Skipped"}
    assert "count@a: AttributeError: a fault of ours" in server.run(run_id)["state"]["message"]


def test_a_retry_goes_on_from_where_the_first_attempt_failed(eventful):
    workspace, done, _ = eventful

    assert re.findall(r"count@again' - (counting from \d)", done.stdout) == ["counting from 0", "counting from 3"]
    assert workspace.total("again") == 4


def test_a_stage_that_takes_too_long_is_ended(server, eventful):
    workspace, done, run_id = eventful

    assert server.messages(run_id)["count@late"] == "count@late took longer than 4 s and was ended"
    assert not re.search("count@late' - step", done.stdout)
    assert workspace.processes() == []


@pytest.fixture
def shared(workspace, tmp_path):
    """A workspace with a remote."""
    workspace.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    return workspace


def test_a_change_set_back_is_restored_and_pushed_for_another_clone_to_restore(server, shared, tmp_path):
    clone = shared.clone(tmp_path / "clone")
    shutil.rmtree(clone.root / ".dvc/cache")
    run(shared, "x", "--set", "counts.x.steps=3")
    status, run_id = run(shared, "x", "--set", "counts.x.steps=2")
    assert status == 0
    assert server.states(run_id) == {"count@x": "Restored", "dvc push": "Completed"}
    assert shared.total("x") == 2

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


EVERY_FIVE_SECONDS = "* * * * * */5"


@pytest.fixture(scope="module")
def served(server, finished, inbox, tmp_path_factory):
    """A workspace that is served every few seconds until that was seen, on new data, and with messages."""
    workspace = finished.clone(tmp_path_factory.mktemp("served") / "project")
    words = ["--name", "counting", "--cron", EVERY_FIVE_SECONDS, "--on-data-update", "--notify", "custom-webhook/inbox"]
    serving = workspace.start("serve", *words)
    serving.wait_for("automation  plumbline: too much feedback was rejected")
    deployment = wait_until(lambda: server.deployment("counting"))
    wait_until(lambda: [found for found in server.runs("counting") if found["state_name"] in {"Running", "Completed"}])
    server.ask(f"deployments/{deployment['id']}/pause_deployment")
    yield workspace
    serving.end()
    workspace.wait_for_nobody()


def test_new_data_starts_the_nightly_run_early(server, served):
    wait_until(lambda: server.ask("automations/count") == 3)
    known = {found["id"] for found in server.runs("counting")}
    told = served.pipelines("data-updated", "12 new rows")

    assert "there is new feedback: 12 new rows" in told.stdout

    def started():
        fresh = [found for found in server.runs("counting") if found["id"] not in known and not found["auto_scheduled"]]
        return [found for found in fresh if found["state_name"] == "Completed"]

    assert wait_until(started)


def test_the_schedule_starts_the_nightly_run(server, served):
    def started():
        runs = server.runs("counting")
        return [found for found in runs if found["auto_scheduled"] and found["state_name"] == "Completed"]

    assert wait_until(started), served.root


@pytest.mark.parametrize(
    ("name", "exit_status", "subject"),
    [
        ("gate", EXIT_GATE, "Plumbline: a gate failed"),
        ("rejected", EXIT_REJECTED, "Plumbline: too much feedback was rejected"),
    ],
    ids=["gate failed", "data rejected"],
)
def test_a_message_is_sent_and_the_stage_is_not_run_again(inbox, eventful, name, exit_status, subject):
    _, done, _ = eventful

    assert len(re.findall(f"Running stage 'count@{name}'", done.stdout)) == 1
    message = wait_until(lambda: [found for found in inbox.messages if found["subject"] == subject])[0]
    assert message["body"] == f"count@{name} ended with {exit_status}: count: the count is not good enough"


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


def test_independent_stages_run_as_many_at_a_time_as_asked_for(server, tmp_path):
    names = [f"s{number}" for number in range(4)]
    workspace = Counting(
        tmp_path / "project", dict.fromkeys(names), {name: {"waits_for": "go_on"} for name in names}, server=server
    )
    started = workspace.start("run", "-j", "2")

    # None of them ends before two are there at a time.
    wait_until(lambda: started.log().count("step 2 of 2") == 2)
    assert len(workspace.find("stages.count")) == 2
    (workspace.root / "go_on").touch()

    assert started.process.wait(120) == 0, started.log()
    assert {name: workspace.total(name) for name in names} == dict.fromkeys(names, 2)
    assert most_at_a_time(started.log()) == 2


def most_at_a_time(log):
    """How many stages had begun and not ended, at most, by the order of what they and DVC printed."""
    running, most = set(), 0
    for name, line in re.findall(r"'count@(\w+)' - (.*)", log):
        if line.startswith("counting from"):
            running.add(name)
        elif line.startswith("Updating lock file"):
            running.discard(name)
        most = max(most, len(running))
    return most
