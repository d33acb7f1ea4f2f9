"""However a flow ends, it leaves no process behind, records nothing wrong, and the next run goes on from there."""

import json
import re
import signal
import subprocess
import sys
import threading
from itertools import product

import psutil
import pytest

from pipelines.locks import LOCK_FILE, lock_holder
from tests.counting import Counting
from tests.prefect_server import run_id_in, wait_until
from tests.workspace import stages_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture
def workspace(server, tmp_path):
    """One stage that takes a minute, and one that follows."""
    made = Counting(
        tmp_path / "project", {"slow": None, "next": "slow"}, {"slow": {"steps": 600, "step_s": 0.1}}, server=server
    )
    yield made
    for process in made.processes():
        process.kill()


def finish(workspace):
    """Let the slow stage go on, with little left to do; gives the log."""
    done = workspace.pipelines("run")
    assert done.returncode == 0, done.stdout
    return done.stdout


def shorten(workspace):
    """Make the slow stage a quick one: other parameters, so it begins anew."""
    workspace.set_params({"counts": {"slow": {"steps": 3, "step_s": 0.0}}})


def test_a_signal_and_a_cancellation_end_everything(server, workspace):
    # Prefect gives SIGTERM on to the process itself, once the flow is through.
    for number, hears_interrupts, status in [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, True, -signal.SIGTERM),
        (signal.SIGTERM, False, -signal.SIGTERM),  # what a shell started in its background
    ]:
        started = workspace.start("run", hears_interrupts=hears_interrupts)
        wait_for_steps(started)
        started.process.send_signal(number)

        assert started.process.wait(15) == status
        assert_nothing_is_left(workspace)

    started = workspace.start("run")
    wait_for_steps(started)

    assert_cancelling_ends(workspace, server, started)
    assert_nothing_is_left(workspace)


def wait_for_steps(started):
    """Wait until the slow stage is computing, wherever it went on from."""
    wait_until(lambda: len(re.findall(r"step \d+ of 600", started.log())) >= 3)


def assert_nothing_is_left(workspace):
    workspace.wait_for_nobody(5)
    assert lock_holder(workspace.root / LOCK_FILE) is None
    assert not (workspace.root / "dvc.lock").exists()
    # DVC heard an interrupt and took its entries out of the rwlock.
    assert json.loads((workspace.root / ".dvc/tmp/rwlock").read_text()) == {}


def test_cancelling_a_sweep_ends_what_its_experiments_share(server, workspace):
    workspace.commit()
    started = workspace.start("sweep", "--set", "counts.next.steps=3,4")
    started.wait_for("step 3 of")

    assert_cancelling_ends(workspace, server, started)


def assert_cancelling_ends(workspace, server, started):
    run_id = run_id_in(started.log())
    cancel(server, run_id)

    workspace.wait_for_nobody(15)
    assert started.process.wait(5) == 130
    assert server.run(run_id)["state_type"] == "CANCELLED"


def test_cancelling_a_served_run_ends_all_but_the_server(server, workspace):
    serving = workspace.start("serve", "--name", "ends")
    deployment = wait_until(lambda: server.deployment("ends"))
    run_id = server.ask(f"deployments/{deployment['id']}/create_flow_run")["id"]
    serving.wait_for("step 3 of")

    cancel(server, run_id)

    wait_until(lambda: {process.pid for process in workspace.processes()} == {serving.process.pid}, timeout_s=15)
    wait_until(lambda: server.run(run_id)["state_type"] == "CANCELLED")
    serving.process.send_signal(signal.SIGTERM)
    workspace.wait_for_nobody(15)
    serving.process.wait()


def cancel(server, run_id):
    """What the button in the page does."""
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    server.ask(f"flow_runs/{run_id}/set_state", **body)


def test_killing_flows_leaves_nobody_and_the_next_run_goes_on(server, workspace):
    """Each flow but the last is killed at another moment; the next one takes over."""
    # It would wait for this file for ever and in silence, so an orphan is there to be found.
    go_on = workspace.root / "go_on"
    workspace.set_params({"counts": {"slow": {"steps": 20, "step_s": 0.1, "waits_for": go_on.name}}})
    killed = []

    def kill(flow):
        flow.end()
        killed.append(run_id_in(flow.log()))

    planning = workspace.start("run")
    planning.wait_for("stages, 0 of them unchanged")
    kill(planning)
    workspace.wait_for_nobody(5)

    computing = workspace.start("run")
    computing.wait_for("step 5 of")
    kill(computing)
    workspace.wait_for_nobody(5)

    ending = workspace.start("run", "slow")
    ending.wait_for("step 20 of")
    saving = workspace.start("run")
    saving.wait_for("waiting for process")
    assert f"waiting for process {ending.process.pid}, which since" in saving.log()
    assert "(slow)" in saving.log()
    assert "step" not in saving.log()
    orphans = workspace.find("counts.slow")
    kill(ending)
    wait_until(lambda: not any(map(is_alive, orphans)), timeout_s=5)

    # The holder's end, even this one, lets the next one in.
    stage = wait_until(lambda: workspace.find("stages.count", "counts.slow"))[0]
    go_on.touch()
    wait_until(lambda: not is_alive(stage), every_s=0.002)
    assert workspace.find("dvc", "count@slow")
    kill(saving)
    workspace.wait_for_nobody(5)
    assert "counting from 0" not in ending.log() + saving.log()

    # A kill may also cut off what dvc notes.
    (workspace.root / ".dvc/tmp/rwlock").write_text("")
    assert "removed stale entries" in finish(workspace)
    assert workspace.total("next") == 2
    assert workspace.repro() == set()
    assert [server.run(run_id)["state_type"] for run_id in killed] == ["CRASHED"] * 4


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


MOMENTS = ("before it computes", "while it computes", "when it is done")


def test_killing_dvc_or_a_stage_fails_the_attempt_and_the_retry_goes_on(server, tmp_path):
    cases = {f"{victim}{i}": (victim, moment) for victim in ("dvc", "stage") for i, moment in enumerate(MOMENTS)}
    workspace = Counting(
        tmp_path / "project",
        dict.fromkeys(cases),
        {name: {"steps": 20, "step_s": 0.1, "linger_s": 1.0} for name in cases},
        {name: {"retries": 1} for name in cases},
        server=server,
    )
    started = workspace.start("run", "-j", "6")
    killed = {}

    def kill(name):
        killed[name] = kill_at(workspace, name, *cases[name])

    threads = [threading.Thread(target=kill, args=(name,)) for name in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert started.process.wait(120) == 0, started.log()
    assert killed == dict.fromkeys(cases, True)
    assert {name: workspace.total(name) for name in cases} == dict.fromkeys(cases, 20)
    workspace.wait_for_nobody(5)
    assert workspace.repro() == set()
    assert not list(workspace.root.glob("out/*.tmp-*"))
    counted = {line.partition("count@")[2] for line in started.log().splitlines() if "counting from" in line}
    # Each began once; what was killed while it computed went on from there, and what had counted to the end did not.
    assert len([line for line in counted if line.endswith("counting from 0")]) == 6
    assert any(line.startswith("dvc1") and not line.endswith("from 0") for line in counted)
    assert "stage2' - counting from 20" in "".join(counted)


def kill_at(workspace, name, victim, moment):
    """Kill a stage's process or its dvc; True if it still ran then."""
    dvc = wait_until(lambda: workspace.find("dvc", f"count@{name}"))[0]
    if victim == "dvc" and moment == MOMENTS[0]:
        return killed(dvc)
    stage = wait_until(lambda: workspace.find("stages.count", f"counts.{name}"))[0]
    done = lambda: next(iter(workspace.root.glob(f"checkpoints/count-{name}/*/done")), None)  # noqa: E731
    if moment == MOMENTS[1]:
        wait_until(lambda: done() and int(done().read_text() or 0) >= 5, every_s=0.01)
    elif moment == MOMENTS[2] and victim == "stage":
        wait_until(lambda: list(workspace.root.glob(f"out/{name}.json.tmp-*")), every_s=0.01)
    elif moment == MOMENTS[2]:
        wait_until(lambda: not is_alive(stage), every_s=0.002)
    return killed(dvc if victim == "dvc" else stage)


def killed(process):
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def test_a_note_of_dvc_that_a_kill_cut_off_stops_nobody(workspace):
    workspace.set_params({"counts": {"slow": {"steps": 10}}})
    started = workspace.start("run")
    started.wait_for("step 1 of")
    note = workspace.root / ".dvc/tmp/rwlock"
    note.write_text("")

    assert started.process.wait(60) == 0, started.log()
    assert workspace.total("next") == 2
    assert "retrying, as DVC's rwlock had stale entries" in started.log()


HOLD = """
import sys, time
from dvc.repo import Repo

repo = Repo()
with repo.lock:
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_work_that_is_done_is_not_lost_while_another_dvc_saves(workspace):
    # dvc gives up after 3 s of its own; what its stage computed would then be computed again.
    workspace.set_params({"counts": {"slow": {"steps": 3, "waits_for": "go_on"}}})
    started = workspace.start("run", "slow")
    started.wait_for("step 3 of")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "8"], cwd=workspace.root, env=workspace.environment, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    (workspace.root / "go_on").touch()

    assert started.process.wait(60) == 0, started.log()
    holder.communicate()
    assert started.log().count("counting from") == 1
    assert workspace.repro("count@slow") == set()


def test_a_stage_that_somebody_else_runs_is_named_and_left_alone(workspace):
    workspace.set_params({"counts": {"slow": {"steps": 3, "waits_for": "go_on"}}})
    theirs = workspace.start_dvc("repro", "count@slow")
    wait_until(lambda: workspace.find("stages.count", "counts.slow"))

    done = workspace.pipelines("run", "slow")

    assert done.returncode == 1
    assert "is busy" in done.stdout
    (workspace.root / "go_on").touch()
    log, _ = theirs.communicate(timeout=60)
    assert theirs.returncode == 0
    assert stages_run(log) == {"count@slow"}
    assert workspace.repro("count@slow") == set()


def test_a_killed_dvc_that_nobody_reaped_blocks_nobody(workspace):
    # In a container whose first process reaps nothing, it stays a zombie, and dvc takes a zombie for alive.
    workspace.set_params({"counts": {"slow": {"steps": 20, "waits_for": "go_on"}}})
    theirs = workspace.start_dvc("repro", "count@slow")
    wait_until(lambda: workspace.find("stages.count", "counts.slow"))
    theirs.kill()
    wait_until(lambda: psutil.Process(theirs.pid).status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not workspace.processes())
    (workspace.root / "go_on").touch()

    finish(workspace)

    assert workspace.total("next") == 2
    theirs.communicate()


def test_two_stages_behind_one_that_is_unchanged_run_at_a_time(server, tmp_path):
    workspace = Counting(
        tmp_path / "project",
        {"base": None, "left": "base", "right": "base"},
        {name: {"waits_for": f"{name}.go"} for name in ("left", "right")},
        server=server,
    )
    workspace.repro("count@base")
    started = workspace.start("run", "left", "right", "-j", "2")

    # Both run: neither takes the unchanged one for its own to look at.
    wait_until(lambda: workspace.find("stages.count", "counts.left") and workspace.find("stages.count", "counts.right"))
    for name in ("left", "right"):
        (workspace.root / f"{name}.go").touch()

    assert started.process.wait(60) == 0, started.log()
    assert (workspace.total("left"), workspace.total("right")) == (2, 2)


def test_a_lock_file_that_a_kill_cut_off_is_named_with_its_remedy(workspace):
    shorten(workspace)
    workspace.repro()
    workspace.commit()
    lock = workspace.root / "dvc.lock"
    whole = lock.read_text()

    for kept, command in product((0, 40), ("run", "status")):
        lock.write_text(whole[:kept])
        done = workspace.pipelines(command)
        assert done.returncode == 1, done.stdout
        assert "`git checkout dvc.lock` brings back what was committed" in done.stdout
        assert "Traceback" not in done.stdout

    workspace.command("git", "checkout", "dvc.lock")
    assert "2 Cached" in finish(workspace)
