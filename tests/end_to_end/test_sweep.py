"""A sweep: what the choices share is computed once, each choice is an experiment, and the table compares them."""

import shutil

import pytest

from tests.counting import Counting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture(scope="module")
def workspace(server, tmp_path_factory):
    made = Counting(
        tmp_path_factory.mktemp("sweep") / "project",
        {"shared": None, "swept": "shared", "other": None},
        server=server,
    )
    made.set_params({"gate": {"swept": {"minimums": {"total": 1}}}})
    text = (made.root / "pipelines/params.py").read_text()
    (made.root / "pipelines/params.py").write_text(text + "    gate: dict[str, Any] = {}\n")
    made.commit()
    return made


def test_a_sweep_computes_what_is_shared_once_and_compares_the_choices(workspace):
    done = workspace.pipelines("sweep", "--set", "counts.swept.steps=3,4,5", "-j", "3")

    assert done.returncode == 0, done.stdout
    assert "3 experiments of count@swept; 1 stages are shared" in done.stdout
    assert done.stdout.count("Running stage 'count@shared'") == 1
    assert done.stdout.count("Running stage 'count@swept'") == 3
    assert "count@other" not in done.stdout
    for steps in (3, 4, 5):
        row = next(line for line in done.stdout.splitlines() if f"| counts.swept.steps={steps} |" in line)
        assert row.endswith(f"| {steps} |")
    assert len(workspace.dvc("exp", "list", "--name-only").stdout.split()) == 3


def test_a_sweep_that_changes_nothing_is_refused(workspace):
    done = workspace.pipelines("sweep", "other", "--set", "counts.swept.steps=3,4")

    assert done.returncode == 1
    assert "--set counts.swept.steps=3,4 changes no stage that is to run" in done.stdout


def test_status_says_what_would_run_and_why(workspace):
    workspace.repro("count@swept")
    workspace.set_params({"counts": {"shared": {"steps": 3}}})

    lines = workspace.pipelines("status").stdout.splitlines()

    assert sorted(lines[:3]) == [
        "count@other   new         never ran here",
        "count@shared  changed     counts.shared (modified)",
        "count@swept   follows     after count@shared",
    ]
    assert lines[-1] == "no flow runs in this workspace"


def test_status_tells_what_is_missing_from_what_changed(workspace):
    # Without a server set or noted, a run has its own.
    del workspace.environment["PREFECT_API_URL"]
    assert workspace.pipelines("run", "other").returncode == 0
    shutil.rmtree(workspace.root / ".dvc/cache")
    (workspace.root / "out/other.json").unlink()

    lines = workspace.pipelines("status").stdout.splitlines()

    assert any(line.startswith("count@other   missing     what it wrote is neither here nor") for line in lines), lines
