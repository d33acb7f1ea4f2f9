"""The demo's graph as a flow, from nothing: what runs and what doesn't, and the page that people see of it."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import sync_playwright

from pipelines.planning import make_plan
from tests.prefect_server import PrefectServer, run_id_in, wait_until
from tests.workspace import SMALL, Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

METHOD = "bco"
TARGETS = (METHOD, "evaluation@dpo")
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("demo") / "project", SMALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory, project):
    """What `make ui` starts."""
    started = PrefectServer(tmp_path_factory.mktemp("prefect"), workspace=project)
    wait_until((project.root / ".cache/prefect/server.json").exists)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def demo(project, server):
    project.first_run = run_flow(project, *TARGETS)
    return project


def run_flow(workspace, *words, status=0):
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


def test_every_stage_of_the_graph_is_a_task_that_completes(server, demo, monkeypatch):
    monkeypatch.chdir(demo.root)
    names = {node.name for node in make_plan(TARGETS).nodes}

    assert len(names) > 10
    assert server.states(demo.first_run) == dict.fromkeys(names, "Completed")


def test_the_nightly_run_is_served_and_the_address_is_told(server, demo):
    deployments = wait_until(lambda: server.ask("deployments/filter"))

    assert [found["name"] for found in deployments] == ["nightly"]
    assert deployments[0]["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert f"Prefect's pages: {server.url}" in server.log.read_text()


def test_metrics_gate_and_report_are_shown(server, demo):
    artifacts = server.artifacts(demo.first_run)

    assert "true_reward/gain" in artifacts[f"metrics-evaluation-{METHOD}"]["data"]
    assert isinstance(json.loads(artifacts[f"gate-{METHOD}"]["data"]), list)
    assert f"reports/{METHOD}.html" in artifacts[f"page-report-{METHOD}"]["data"]
    assert any(key.startswith("progress-") for key in artifacts)


@pytest.mark.skipif(
    not CHROMIUM and not os.environ.get("CI"), reason="chromium is not on PATH; `apt-get install chromium` installs it"
)
def test_the_page_of_the_run_shows_stages_and_states(server, demo, tmp_path):
    states = server.states(demo.first_run)
    with sync_playwright() as playwright:
        # Without its sandbox, which needs rights that a container doesn't give.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 820})
        page.goto(f"{server.url}/runs/flow-run/{demo.first_run}")
        page.locator("[role=tab], .p-tab").filter(has_text="Task Runs").first.click(timeout=60_000)
        for name in states:
            page.get_by_text(name, exact=True).first.wait_for()
        shown = page.inner_text("body")
        page.screenshot(path=tmp_path / "run.png")
        browser.close()

    for name, state in states.items():
        assert re.search(rf"^{re.escape(name)}\n(\w+\n)?{state}$", shown, flags=re.MULTILINE), shown


def test_a_second_run_finds_every_stage_cached(server, demo):
    run_id = run_flow(demo)

    # Without a target it is about the methods in `run.methods`, as `make demo` is.
    assert server.states(run_id) == {name: "Cached" for name in server.states(demo.first_run) if "dpo" not in name}


def test_changing_the_beta_of_dpo_runs_two_stages(server, demo):
    run_id = run_flow(demo, *TARGETS, "--set", "training.dpo.beta=0.3")

    states = server.states(run_id)
    ran = {name for name, state in states.items() if state == "Completed"}
    assert ran == {"training@dpo", "evaluation@dpo"}
    assert {state for name, state in states.items() if name not in ran} == {"Cached"}


def test_the_checks_of_a_gate_that_is_not_met_are_shown(server, demo):
    demo.set_params({"gate": {METHOD: {"minimums": {"true_reward/gain": 5.0}}}})

    run_id = run_flow(demo, f"gate@{METHOD}", status=1)

    assert server.states(run_id)[f"gate@{METHOD}"] == "Failed"
    checks = json.loads(server.artifacts(run_id)[f"gate-{METHOD}"]["data"])
    assert [(check["metric"], check["limit"], check["passed"]) for check in checks] == [("true_reward/gain", 5, False)]
