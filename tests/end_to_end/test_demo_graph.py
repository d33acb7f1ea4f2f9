"""The demo's graph, from nothing by the flow, and then under `dvc repro`: what reruns, what doesn't, and what is shown.

That either of the two finds done what the other did, and that both write the same bytes, is what is shown here too.
"""

import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import sync_playwright

from pipelines.graph import read_graph, targets_of
from pipelines.planning import make_plan
from tests.prefect_server import run_flow, wait_until
from tests.workspace import BCO, DEMO_GATE, SMALL, Workspace, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AFTER_TRAINING = {"evaluation@bco", "gate@bco", "report@bco"}
CHROMIUM = shutil.which("chromium")
PICTURES = Path(os.environ["PLUMBLINE_PICTURES"]).resolve() if "PLUMBLINE_PICTURES" in os.environ else None
"""Where to keep pictures of the pages: docs/images, to renew those of the docs."""

needs_browser = pytest.mark.skipif(
    not CHROMIUM and not os.environ.get("CI"), reason="chromium is not on PATH; `apt-get install chromium` installs it"
)


@pytest.fixture
def workspace(reproduced, tmp_path):
    """A reproduced workspace that a test may spoil."""
    return reproduced.clone(tmp_path / "project")


def would_run(workspace, monkeypatch, *targets):
    """Names of the stages that changed and of those behind them, by a look in this process."""
    with monkeypatch.context() as patch:
        patch.chdir(workspace.root)
        plan = make_plan(targets)
    found = set()
    for node in plan.nodes:
        if node.name not in plan.unchanged or found.intersection(node.feeding):
            found.add(node.name)
    return found


def test_every_stage_of_the_graph_is_a_task_that_completes(server, reproduced, first_run, monkeypatch):
    monkeypatch.chdir(reproduced.root)
    names = {node.name for node in make_plan(["bco"]).nodes}

    assert len(names) > 10
    assert server.states(first_run) == dict.fromkeys(names, "Completed")


def test_the_nightly_run_is_served_and_the_address_is_told(server, first_run):
    nightly = {"name": {"any_": ["nightly"]}}
    deployments = wait_until(lambda: server.ask("deployments/filter", deployments=nightly))

    assert deployments[0]["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert f"Prefect's pages: {server.url}" in server.log.read_text()


def test_metrics_gate_and_report_are_shown(server, first_run):
    artifacts = server.artifacts(first_run)

    assert "true_reward/gain" in artifacts["metrics-evaluation-bco"]["data"]
    assert [check["passed"] for check in json.loads(artifacts["gate-bco"]["data"])] == [True, True]
    assert "reports/bco.html" in artifacts["page-report-bco"]["data"]
    assert any(key.startswith("progress-") for key in artifacts)


@pytest.fixture
def page():
    """A page of a real browser."""
    with sync_playwright() as playwright:
        # Without its sandbox, which needs rights that a container doesn't give.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1000, "height": 820})
        browser.close()


@needs_browser
def test_the_page_of_the_run_shows_stages_and_states(server, first_run, page, tmp_path):
    states = server.states(first_run)

    page.goto(f"{server.url}/runs/flow-run/{first_run}")
    page.locator("[role=tab], .p-tab").filter(has_text="Task Runs").first.click(timeout=60_000)
    for name in states:
        page.get_by_text(name, exact=True).first.wait_for()

    shown = page.inner_text("body")
    for name, state in states.items():
        assert re.search(rf"^{re.escape(name)}\n(\w+\n)?{state}$", shown, flags=re.MULTILINE), shown
    page.screenshot(path=PICTURES / "run.png" if PICTURES else tmp_path / "run.png")


@needs_browser
def test_the_page_of_a_gate_shows_its_checks(server, first_run, page, tmp_path):
    checks = server.artifacts(first_run)["gate-bco"]

    page.goto(f"{server.url}/artifacts/artifact/{checks['id']}")
    page.get_by_text("requirement", exact=True).first.wait_for(timeout=60_000)

    shown = page.inner_text("body")
    assert "gate@bco: metrics/evaluation/bco.json" in shown
    page.screenshot(path=PICTURES / "gate.png" if PICTURES else tmp_path / "gate.png")


def test_a_second_run_finds_every_stage_cached(server, reproduced, first_run):
    run_id = run_flow(reproduced)

    # Without a target it is about the methods in `run.methods`, as `make demo` is.
    assert server.states(run_id) == dict.fromkeys(server.states(first_run), "Cached")


def test_a_repro_after_it_does_nothing(reproduced):
    assert reproduced.repro() == set()


@pytest.mark.long
def test_a_repro_from_clean_gives_the_same_bytes(reproduced, tmp_path):
    other = Workspace(tmp_path / "elsewhere", SMALL)
    other.set_params(DEMO_GATE)
    other.repro()

    assert other.outputs() == reproduced.outputs()
    assert len(other.outputs()) > 15


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({}, set()),
        ({"training": {"bco": {"beta": 0.3}}}, {"training@bco"}),
        (
            {"density_ratio": {"max_density_ratio": 1.5}},
            {"density_ratio", "shift_diagnosis", "bco_rows", "training@bco"},
        ),
    ],
    ids=["nothing", "beta", "a clamp"],
)
def test_a_change_reruns_what_reads_it_and_what_follows(workspace, monkeypatch, change, rerun):
    workspace.set_params(change)

    assert would_run(workspace, monkeypatch, *BCO) == (rerun | AFTER_TRAINING if change else set())


@pytest.mark.long
def test_methods_share_tokens_and_reference_log_probabilities(server, workspace):
    """What BCO's graph computed isn't computed again for KTO and DPO, which add their own stages only."""
    assert workspace.repro("evaluation@kto") == {
        "mismatched_rows",
        "mismatched_reference_logprobs@base",
        "kto_rows",
        "training@kto",
        "evaluation@kto",
    }
    assert workspace.repro("evaluation@dpo") == {"dpo_rows", "training@dpo", "evaluation@dpo"}
    assert workspace.repro("report@kto", "report@dpo", "gate@kto", "gate@dpo") == {
        f"{stage}@{method}" for stage in ("report", "gate") for method in ("kto", "dpo")
    }

    states = server.states(run_flow(workspace, "evaluation@dpo", "--set", "training.dpo.beta=0.3"))
    ran = {name for name, state in states.items() if state == "Completed"}
    assert ran == {"training@dpo", "evaluation@dpo"}
    assert {state for name, state in states.items() if name not in ran} == {"Cached"}


@pytest.mark.long
def test_every_other_method_runs_to_its_evaluation(workspace):
    """On the demo's tokens; none of them computes tokens or log-probabilities again."""
    methods = ["sft", "reward", "iterative_sft", "ppo", "ddpo"]
    with contextlib.chdir(workspace.root):
        ends = targets_of(methods, read_graph())

    ran = workspace.repro(*ends)

    assert {f"gate@{method}" for method in methods} <= ran
    assert {"iterative_sft_training", "ppo_training", "ddpo_training", "training@sft", "training@reward"} <= ran
    assert {"tokenization", "reference_logprobs@base", "base_model"}.isdisjoint(ran)
    for page in methods:
        assert (workspace.root / f"reports/{page}.html").stat().st_size > 10_000


@pytest.mark.long
def test_a_method_starts_from_the_model_of_another_and_dvc_runs_what_the_plan_says(workspace, monkeypatch):
    workspace.set_params({"training": {"bco": {"start_from": "sft"}}, "references": ["base", "sft"]})
    planned = would_run(workspace, monkeypatch, "evaluation@bco")

    ran = workspace.repro("evaluation@bco")

    assert ran == planned
    assert ran == {"sft_rows", "training@sft", "reference_logprobs@sft", "bco_rows", "training@bco", "evaluation@bco"}
    lineage = json.loads((workspace.root / "models/bco/plumbline.json").read_text())
    assert lineage["base_model"]["path"] == "../sft"


def test_editing_the_loss_reruns_training_and_stops_where_its_result_is_the_same(workspace):
    loss = workspace.root / "stages/losses/bco.py"
    loss.write_text(loss.read_text().replace("    rewards = beta", "    rewards = 1.0 * beta", 1))

    assert workspace.repro() == {"code", "training@bco"}


@pytest.mark.long
def test_a_change_set_back_is_restored_and_not_computed(workspace):
    workspace.set_params({"training": {"bco": {"beta": 0.3}}})
    workspace.repro("training@bco")
    changed = workspace.outputs()["models/bco"]
    workspace.set_params({"training": {"bco": {"beta": SMALL["training"]["bco"]["beta"]}}})

    log = workspace.dvc("repro", "training@bco").stdout

    assert "Stage 'training@bco' is cached - skipping run" in log
    assert workspace.outputs()["models/bco"] != changed


@pytest.mark.long
def test_the_rows_of_a_grown_log_keep_their_side_and_only_new_ones_are_computed(workspace):
    import pyarrow.compute as pc

    from stages.contracts.artifact import read_table
    from stages.contracts.completions import COMPLETIONS

    own = workspace.root / "data" / "own.jsonl"
    shutil.copy(workspace.root / "data/demo/feedback.jsonl", own)
    workspace.set_params({"inputs": {"feedback": "data/own.jsonl"}})
    workspace.repro("reference_logprobs", "prompt_embedding")
    old = read_table(workspace.root / "artifacts/completions", COMPLETIONS, columns=["row_id", "split"])
    with own.open("a") as log:
        row = json.loads(own.read_text().splitlines()[0])
        row["prompt"] = "A prompt that nobody asked before?"
        row["completion"] = "An answer that nobody gave before."
        log.write(json.dumps(row) + "\n")

    done = workspace.dvc("repro", "reference_logprobs", "prompt_embedding")

    new = read_table(workspace.root / "artifacts/completions", COMPLETIONS, columns=["row_id", "split"])
    assert new.num_rows == old.num_rows + 1
    assert new.filter(pc.is_in(new["row_id"], old["row_id"])).to_pydict() == old.to_pydict()
    assert done.stdout.count(", 1 to compute") == 3  # tokens, embeddings, reference log-probabilities


def test_an_input_edited_while_a_stage_runs_leaves_the_lock_true(workspace):
    workspace.set_params({"training": {"bco": {"num_train_epochs": 6}}})
    before = workspace.lock()["training@bco"]
    process = workspace.start_dvc("repro", "training@bco")
    wait_for_line(process, "training: ")
    workspace.set_params({"training": {"bco": {"num_train_epochs": 7}}})

    log, _ = process.communicate(timeout=200)

    assert process.returncode != 0
    assert "inputs changed while the stage ran: params.yaml; the result is discarded" in log
    assert "exited with 75" in log
    assert workspace.lock()["training@bco"] == before
    assert re.search(r"modified: +training\.bco", workspace.dvc("status").stdout)


@pytest.mark.long
def test_killing_dvc_takes_the_stage_with_it_and_the_next_run_goes_on(workspace):
    workspace.set_params({"training": {"bco": {"num_train_epochs": 30, "save_steps": 5}}})
    process = workspace.start_dvc("repro", "training@bco")
    wait_for_line(process, "Running stage 'training@bco'")
    stage = wait_for_stage(process.pid, "stages.training")
    # Once the second one is begun, the first is whole.
    wait_until(lambda: list((workspace.root / "checkpoints").glob("training-bco/*/checkpoint-1*")))

    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    wait_until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE)
    log = workspace.dvc("repro", "training@bco").stdout
    assert stages_run(log) == {"training@bco"}
    assert "going on from checkpoint" in log


@pytest.mark.long
def test_a_gate_that_is_not_met_fails_the_run_and_keeps_the_report(server, workspace):
    workspace.set_params({"gate": {"bco": {"minimums": {"true_reward/gain": 5.0}}}})

    done = workspace.dvc("repro", "--keep-going", *BCO, check=False)

    assert done.returncode != 0
    assert "exited with 10" in done.stderr + done.stdout
    assert "true_reward/gain: required" in done.stderr + done.stdout
    assert (workspace.root / "reports/bco.html").is_file()

    run_id = run_flow(workspace, "gate@bco", status=1)

    assert server.states(run_id)["gate@bco"] == "Failed"
    checks = json.loads(server.artifacts(run_id)["gate-bco"]["data"])
    assert [(check["metric"], check["limit"], check["passed"]) for check in checks] == [
        ("true_reward/gain", 5, False),
        ("kl", 1000, True),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["dag"],
        ["dag", "--mermaid", "evaluation@bco"],
        ["params", "diff"],
        ["metrics", "show"],
        ["plots", "show", "--no-html"],
    ],
    ids=" ".join,
)
def test_commands_of_the_readme_work(reproduced, words):
    if "--no-html" in words:
        words = ["plots", "show", "-o", "drawn"]

    assert reproduced.dvc(*words).returncode == 0


@pytest.mark.long
def test_an_experiment_runs_with_another_beta_what_the_plan_says(workspace, monkeypatch):
    workspace.command("git", "add", "--all")
    workspace.command("git", "commit", "--quiet", "-m", "Start")

    log = workspace.dvc("exp", "run", "-S", "training.bco.beta=0.3", *BCO).stdout

    assert stages_run(log) == {"training@bco"} | AFTER_TRAINING
    workspace.set_params({"training": {"bco": {"beta": 0.5}}})
    assert would_run(workspace, monkeypatch, *BCO) == stages_run(log)


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without printing {text!r}")


def wait_for_stage(pid, module):
    found = []

    def look():
        found[:] = [
            child
            for child in psutil.Process(pid).children(recursive=True)
            if module in child.cmdline() and "sh" not in child.name()
        ]
        return found

    wait_until(look)
    return found[0]
