"""The stage runtime, run as DVC runs it: a process with a command line, in a folder with a params.yaml."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages.contracts.stage import Section, parse_section, read_params

ROOT = Path(__file__).resolve().parents[2]

STAGE = '''
"""Stage for tests: copies its input, slowly if asked."""
import time
from pydantic import Field
from stages.contracts.stage import Input, Output, Scratch, Section, StageFailure, stage_main

class ProbeParams(Section):
    """Section."""
    times: int = Field(1, gt=0)
    """How often."""
    pause_s: float = 0.0
    """How long."""
    fail: str = ""
    """How to end."""

def run(*, source: Input, copy: Output, second: Output, scratch: Scratch, params: ProbeParams) -> None:
    """Copy."""
    copy.mkdir()
    (copy / "text").write_text(source.read_text() * params.times)
    (scratch / "progress").write_text("half")
    print("running", flush=True)
    time.sleep(params.pause_s)
    if params.fail == "value":
        raise ValueError("expected better, found worse; try again")
    if params.fail == "gate":
        raise StageFailure("fell short", status=10)
    if params.fail == "full":
        raise OSError(28, "No space left on device", "x")
    if params.fail != "forget":
        second.write_text("2")

if __name__ == "__main__":
    stage_main(run)
'''


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "probe.py").write_text(STAGE)
    (tmp_path / "source.txt").write_text("abc")
    (tmp_path / "params.yaml").write_text("probe: {times: 2}\n")
    return tmp_path


COMMAND = "probe.py --source source.txt --copy out/copy --second out/second"


def start(workspace, **kwargs):
    return subprocess.Popen(
        [sys.executable, *COMMAND.split()],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def finish(workspace):
    process = start(workspace)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until_running(process):
    assert process.stdout.readline() == "running\n"


def published(workspace):
    return sorted(path.name for path in (workspace / "out").iterdir()) if (workspace / "out").exists() else []


def test_publishes_all_outputs_and_removes_its_scratch(workspace):
    code, _, err = finish(workspace)

    assert (code, err) == (0, "")
    assert (workspace / "out/copy/text").read_text() == "abcabc"
    assert published(workspace) == ["copy", "second"]
    assert list((workspace / "checkpoints").rglob("progress")) == []


def test_replaces_what_stood_there(workspace):
    finish(workspace)
    (workspace / "source.txt").write_text("x")

    assert finish(workspace)[0] == 0
    assert (workspace / "out/copy/text").read_text() == "xx"
    assert published(workspace) == ["copy", "second"]


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        ("value", 1, "probe: expected better, found worse; try again\n"),
        ("gate", 10, "probe: fell short\n"),
        ("full", 1, "probe: [Errno 28] No space left on device: 'x'\n"),
        ("forget", 1, "probe: the stage ended without writing second\n"),
    ],
)
def test_a_failure_is_one_sentence_and_publishes_nothing(workspace, fail, code, message):
    (workspace / "params.yaml").write_text(f"probe: {{fail: {fail}}}\n")

    assert finish(workspace)[::2] == (code, message)
    assert published(workspace) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe: {tmies: 2}", "params.yaml: probe.tmies is no parameter; did you mean times?"),
        ("probe: {times: 0}", "params.yaml: probe.times: expected greater than 0, found 0"),
        ("prob: {times: 2}", "params.yaml has no section probe; did you mean prob?"),
        ("probe: [", "params.yaml: expected YAML"),
    ],
)
def test_a_wrong_parameter_is_named_with_the_nearest_right_one(workspace, text, message):
    (workspace / "params.yaml").write_text(text)

    code, _, err = finish(workspace)

    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_input_is_named_before_anything_runs(workspace):
    (workspace / "source.txt").unlink()

    code, out, err = finish(workspace)

    assert (code, out) == (1, "")
    assert "expected source at source.txt, found nothing" in err


@pytest.mark.parametrize(("path", "text"), [("source.txt", "abd"), ("params.yaml", "probe: {times: 3, pause_s: 2}")])
def test_an_input_edited_while_the_stage_runs_discards_its_result(workspace, path, text):
    (workspace / "params.yaml").write_text("probe: {times: 2, pause_s: 2}")
    process = start(workspace)
    wait_until_running(process)
    (workspace / path).write_text(text)

    _, err = process.communicate(timeout=60)

    assert process.returncode == 75
    assert f"inputs changed while the stage ran: {path}; the result is discarded" in err
    assert published(workspace) == []


def test_a_killed_run_leaves_no_output_and_the_next_one_finds_its_scratch(workspace):
    (workspace / "params.yaml").write_text("probe: {times: 2, pause_s: 60}")
    process = start(workspace)
    wait_until_running(process)
    process.kill()
    process.communicate()
    assert [name for name in published(workspace) if ".tmp-" not in name] == []
    assert len(list((workspace / "checkpoints").rglob("progress"))) == 1
    # What a kill within `written_beside` leaves.
    (workspace / "out/.copy.tmp-0123456789abcdef.99.tmp").write_text("half")

    (workspace / "params.yaml").write_text("probe: {times: 2}")

    assert finish(workspace)[0] == 0
    assert published(workspace) == ["copy", "second"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("shell", ["exec ", "", "true; "], ids=["exec", "direct", "shell in between"])
def test_a_stage_whose_dvc_died_before_it_came_up_ends_at_once(workspace, shell):
    # What stands for dvc is gone half a second before the stage looks who its parent is.
    command = f"sleep 0.5; {shell}{sys.executable} {COMMAND}" + ("; true" if shell == "true; " else "")
    dvc = f"import subprocess; subprocess.Popen({command!r}, shell=True)"

    done = subprocess.run(
        [sys.executable, "-c", dvc],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": "probe"},
        capture_output=True,
        start_new_session=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == b""
    assert published(workspace) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("shell", ["", "exec ", "true; "], ids=["direct", "exec", "shell in between"])
def test_dies_with_its_parent(workspace, shell):
    (workspace / "params.yaml").write_text("probe: {times: 2, pause_s: 60}")
    command = f"{shell}{sys.executable} {COMMAND}; true" if shell == "true; " else f"{shell}{sys.executable} {COMMAND}"
    # The parent starts a shell as DVC does, says who its descendants are, and is killed.
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.Popen({command!r}, shell=True).wait()"],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until_running(parent)
    family = psutil.Process(parent.pid).children(recursive=True)
    stage = next(child for child in family if "probe.py" in child.cmdline())

    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()

    deadline = time.monotonic() + 10
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


class Inner(Section):
    """A section inside a section."""

    beta: float = 0.1


class Outer(Section):
    """A section."""

    training: Inner = Inner()
    optional: Inner | None = None


@pytest.mark.parametrize("name", ["training", "optional"])
def test_the_nearest_name_is_looked_for_where_the_wrong_one_stands(name):
    with pytest.raises(ValueError, match=rf"p\.{name}\.betta is no parameter; did you mean beta\?"):
        parse_section(Outer, {name: {"betta": 1}}, where="p")


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"p\.training\.beta: expected a valid number.*; p\.trainin is no parameter"):
        parse_section(Outer, {"training": {"beta": "x"}, "trainin": 1}, where="p")


def test_params_need_the_projects_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="run from the project's root"):
        read_params("probe")
