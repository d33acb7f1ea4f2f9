"""A nightly loop over weeks: restarts, missed nights, new data, and who commits what it computed."""

import subprocess

import pytest
import yaml

from tests.counting import Counting
from tests.prefect_server import run_id_in, wait_until
from tests.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.long]
EVERY_FIVE_SECONDS = "* * * * * */5"


@pytest.fixture
def workspace(tmp_path, server):
    """One stage that reads a file that DVC keeps, on the branch `nightly` of a repository with both remotes."""
    found = Counting(tmp_path / "project", {"x": None}, server=server)
    found.dvc("add", "seed.txt")
    found.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    found.commit()
    git(found, "switch", "--quiet", "--create", "nightly")
    subprocess.run(["git", "init", "--quiet", "--bare", str(tmp_path / "origin")], check=True)
    git(found, "remote", "add", "origin", str(tmp_path / "origin"))
    return found


def git(workspace, *words):
    return workspace.command("git", *words).stdout.strip()


def published(workspace, path):
    """A file as the branch of the remote has it."""
    return yaml.safe_load(git(workspace, "--git-dir", str(workspace.root.parent / "origin"), "show", f"nightly:{path}"))


def clone(workspace, root):
    """What somebody else has of the branch."""
    git(workspace, "clone", "--quiet", "--branch", "nightly", str(workspace.root.parent / "origin"), str(root))
    return workspace.at(root)


# ---- what a run recorded ----


def test_new_data_and_results_are_committed_and_pushed_for_another_clone(workspace, tmp_path):
    assert workspace.pipelines("run", "x", "--publish", "nightly").returncode == 0
    (workspace.root / "seed.txt").write_text("a file to read\nand more of it\n")
    (workspace.root / "notes.txt").write_text("of no concern to the run")
    git(workspace, "add", "notes.txt")

    done = workspace.pipelines("run", "x", "--publish", "nightly")

    assert done.returncode == 0, done.stdout
    stage = published(workspace, "dvc.lock")["stages"]["count@x"]
    assert stage["deps"][0]["md5"] == published(workspace, "seed.txt.dvc")["outs"][0]["md5"]
    assert git(workspace, "show", "--format=%s", "--name-only").split("\n")[2:] == ["dvc.lock", "seed.txt.dvc"]
    assert git(workspace, "diff", "--cached", "--name-only") == "notes.txt"
    mate = clone(workspace, tmp_path / "mate")
    mate.dvc("pull")
    assert (mate.root / "seed.txt").read_text().endswith("and more of it\n")
    assert mate.total("x") == 2
    assert mate.repro() == set()


def test_nothing_new_is_no_commit(workspace):
    workspace.pipelines("run", "x", "--publish", "nightly")
    before = git(workspace, "rev-parse", "HEAD")

    assert workspace.pipelines("run", "x", "--publish", "nightly").returncode == 0
    assert git(workspace, "rev-parse", "HEAD") == before


def test_a_push_that_is_refused_is_said_and_never_forced(workspace, server, tmp_path):
    workspace.pipelines("run", "x", "--publish", "nightly")
    other = clone(workspace, tmp_path / "other")
    (other.root / "README").write_text("somebody else's")
    for words in (
        ["add", "README"],
        ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x"],
        ["push", "-q"],
    ):
        git(other, *words)

    done = workspace.pipelines("run", "x", "--set", "counts.x.steps=3", "--publish", "nightly")

    assert done.returncode == 1
    assert "`git push origin nightly` failed" in done.stdout
    states = server.states(run_id_in(done.stdout))
    assert states == {"count@x": "Completed", "dvc push": "Completed", "git push": "Failed"}
    assert git(other, "ls-remote", "origin", "nightly").split()[0] == git(other, "rev-parse", "HEAD")
    # The remedy that it names, with the driver that the setup sets up.
    (workspace.root / ".gitattributes").write_text((ROOT / ".gitattributes").read_text())
    git(workspace, "config", "merge.ours.driver", "true")
    git(workspace, "pull", "--quiet", "--no-rebase", "--no-edit", "origin", "nightly")
    assert workspace.pipelines("run", "x", "--publish", "nightly").returncode == 0
    assert published(workspace, "params.yaml")["counts"]["x"]["steps"] == 3


def test_another_branch_than_the_one_checked_out_is_refused_before_anything_runs(workspace):
    done = workspace.pipelines("run", "x", "--publish", "main")

    assert done.returncode == 1
    assert "--publish: expected the branch main to be checked out, found nightly" in done.stdout
    assert workspace.total("x") is None


# ---- restarts and missed nights ----


def serve(workspace, name):
    started = workspace.start("serve", "--name", name, "--cron", EVERY_FIVE_SECONDS)
    started.wait_for("nobody is told of failures")
    return started


def test_the_schedule_outlives_a_rolling_restart(workspace, server):
    old = serve(workspace, "rolling")
    wait_until(lambda: server.deployment("rolling"))
    new = serve(workspace, "rolling")
    old.process.terminate()
    old.process.wait(60)

    deployment = server.deployment("rolling")
    assert not deployment["paused"]
    assert [schedule["active"] for schedule in deployment["schedules"]] == [True]
    known = {run["id"] for run in completed(server, "rolling")}
    assert wait_until(lambda: [run for run in completed(server, "rolling") if run["id"] not in known])
    server.ask(f"deployments/{deployment['id']}/pause_deployment")
    new.end()
    workspace.wait_for_nobody()


def completed(server, name):
    return [run for run in server.runs(name) if run["state_name"] == "Completed"]


def overdue(server, name):
    """Runs that the schedule planned for before now and that nobody began, newest first."""
    found = server.ask(
        "flow_runs/filter",
        deployments={"name": {"any_": [name]}},
        flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        sort="EXPECTED_START_TIME_DESC",
    )
    return [run for run in found if run["estimated_start_time_delta"] > 0]


def test_missed_nights_run_once(workspace, server):
    first = serve(workspace, "missed")
    wait_until(lambda: completed(server, "missed"))
    first.end()
    workspace.wait_for_nobody()
    missed = wait_until(lambda: (found := overdue(server, "missed")) and len(found) >= 4 and found)

    again = serve(workspace, "missed")
    deployment = server.deployment("missed")
    server.ask(f"deployments/{deployment['id']}/pause_deployment")

    # The newest of them, or one that fell due since, is left to run.
    assert {server.run(run["id"])["state_name"] for run in missed[1:]} == {"Cancelled"}
    assert "were missed while nobody served missed" in again.log()
    again.end()
    workspace.wait_for_nobody()
