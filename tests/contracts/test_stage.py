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


def test_of_two_runs_by_hand_the_second_waits_for_the_first_and_says_so(workspace):
    (workspace / "params.yaml").write_text("probe: {times: 2, pause_s: 2}")
    first = start(workspace)
    wait_until_running(first)
    second = start(workspace)

    assert f"waiting for process {first.pid}, which writes {workspace / 'out/copy'}" in second.stderr.readline()
    assert published(workspace) != ["copy", "second"]
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert (workspace / "out/copy/text").read_text() == "abcabc"
    assert published(workspace) == ["copy", "second"]


def test_a_run_that_was_killed_keeps_nobody_waiting(workspace):
    (workspace / "params.yaml").write_text("probe: {times: 2, pause_s: 60}")
    first = start(workspace)
    wait_until_running(first)
    first.kill()
    first.communicate()
    (workspace / "params.yaml").write_text("probe: {times: 2}")

    assert finish(workspace)[::2] == (0, "")


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


# ---- further kinds of arguments ----

FLEXIBLE = '''
"""Stage for tests: joins its inputs, if it is given any."""
from stages.contracts.stage import Input, Inputs, Output, Section, stage_main

class JoinParams(Section):
    """Section."""
    times: int = 1
    """How often."""

def run(*, sources: Inputs = (), last: Input | None = None, joined: Output, params: JoinParams | None = None) -> None:
    """Join."""
    texts = [path.read_text() for path in (*sources, *([last] if last else []))]
    joined.write_text(" ".join(texts) * (params.times if params else 1) + ("" if params else "!"))

if __name__ == "__main__":
    stage_main(run)
'''


@pytest.fixture
def flexible(tmp_path):
    (tmp_path / "join.py").write_text(FLEXIBLE)
    for name in "abc":
        (tmp_path / name).write_text(name)
    (tmp_path / "params.yaml").write_text("rows: {join: {times: 2}, other: {tmies: 2}}\n")
    return tmp_path


def execute(folder, command, **environment):
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_flag_may_take_several_inputs_and_keeps_their_order(flexible):
    assert execute(flexible, "join.py --sources b a --last c --joined out --params rows.join") == (0, "")

    assert (flexible / "out").read_text() == "b a cb a c"


def test_inputs_that_are_not_given_are_those_of_the_signature(flexible):
    assert execute(flexible, "join.py --joined out") == (0, "")

    assert (flexible / "out").read_text() == "!"


def test_an_optional_section_is_read_only_where_it_is_named(flexible):
    # Nothing stands under `join` in params.yaml, and the file need not be there.
    (flexible / "params.yaml").unlink()

    assert execute(flexible, "join.py --last a --joined out") == (0, "")
    assert (flexible / "out").read_text() == "a!"


def test_an_optional_section_is_checked_where_it_is_named(flexible):
    code, err = execute(flexible, "join.py --joined out --params rows.other")

    assert code == 1
    assert "rows.other.tmies is no parameter; did you mean times?" in err


def test_a_missing_one_of_several_inputs_is_named(flexible):
    code, err = execute(flexible, "join.py --sources a nothing --joined out")

    assert code == 1
    assert "expected sources at nothing, found nothing" in err


def test_one_of_several_inputs_edited_while_the_stage_runs_discards_its_result(flexible):
    slow = FLEXIBLE.replace("joined.write_text(", 'sources[1].write_text("x")\n    joined.write_text(')
    (flexible / "join.py").write_text(slow)

    code, err = execute(flexible, "join.py --sources a b --joined out")

    assert code == 75
    assert "inputs changed while the stage ran: b; the result is discarded" in err
    assert not (flexible / "out").exists()


SERVING = '''
"""Stage for tests: serves two methods."""
from stages.contracts.stage import Output, Section, stage_main

class FewParams(Section):
    """Section."""
    few: int = 1
    """Number."""

class ManyParams(Section):
    """Section."""
    many: int = 2
    """Number."""

class Method:
    """Of a stage."""
    in_processes = False
    def __init__(self, kind, modules):
        self.kind, self.modules = kind, modules
    def section(self):
        return self.kind

METHODS = {"few": Method(FewParams, ["stages.losses.bco"]), "many": Method(ManyParams, [])}

def method_of(name):
    if name not in METHODS:
        raise ValueError(f"expected a method, found {name}; did you mean few?")
    return METHODS[name]

def launcher(may_share):
    print(f"may share: {may_share}", flush=True)

def run(*, method: str, told: Output, params: Section) -> None:
    """Tell."""
    told.write_text(f"{method} {params!r}")

if __name__ == "__main__":
    stage_main(run, launcher=launcher, method_of=method_of)
'''


@pytest.fixture
def serving(tmp_path):
    (tmp_path / "serve.py").write_text(SERVING)
    (tmp_path / "params.yaml").write_text("training: {few: {few: 3}, many: {}, wrong: {few: 1}}\n")
    return tmp_path


@pytest.mark.parametrize(("method", "told"), [("few", "few FewParams(few=3)"), ("many", "many ManyParams(many=2)")])
def test_a_stage_of_several_methods_reads_the_section_of_the_one_at_hand(serving, method, told):
    code, err = execute(serving, f"serve.py --method {method} --told out --params training.{method}")

    assert (code, err) == (0, "")
    assert (serving / "out").read_text() == told


def test_a_section_of_another_method_is_refused(serving):
    code, err = execute(serving, "serve.py --method many --told out --params training.wrong")

    assert code == 1
    assert "training.wrong.few is no parameter" in err


def test_an_unknown_method_ends_the_stage_with_the_sentence_of_the_table(serving):
    code, err = execute(serving, "serve.py --method fewe --told out --params training.few")

    assert (code, err) == (1, "serve: expected a method, found fewe; did you mean few?\n")


# ---- the code that DVC records ----


def listing_of(folder, *modules):
    return closure_listing(folder, [str(folder / "serve.py"), *modules])


def closure_listing(folder, modules):
    script = (
        "import sys; from pathlib import Path; from stages.contracts.closure import code_listing; "
        "print(code_listing([Path(m) if m.endswith('.py') else m for m in sys.argv[1:]]), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *modules],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


COMMAND_OF_FEW = "serve.py --method few --told out --params training.few"


@pytest.fixture
def listed(serving):
    """The workspace with the file that the stage `code` would have written."""
    listing = serving / "artifacts" / "code" / "few_serve"
    listing.parent.mkdir(parents=True)
    listing.write_text(listing_of(serving, "stages.losses.bco"))
    return serving


def test_code_as_it_is_listed_runs_under_dvc(listed):
    assert execute(listed, COMMAND_OF_FEW, DVC_STAGE="training@few") == (0, "")


def test_code_that_was_edited_since_is_refused_under_dvc_and_named(listed):
    (listed / "serve.py").write_text(SERVING.replace("few: int = 1", "few: int = 4"))

    code, err = execute(listed, COMMAND_OF_FEW, DVC_STAGE="training@few")

    assert code == 75
    assert "expected the code that artifacts/code/few_serve lists, found" in err
    assert "serve.py edited since; run `dvc repro code` first" in err
    assert not (listed / "out").exists()


def test_edited_code_runs_by_hand(listed):
    (listed / "serve.py").write_text(SERVING.replace("few: int = 1", "few: int = 4"))

    assert execute(listed, COMMAND_OF_FEW)[0] == 0


def test_an_edited_comment_is_no_other_code(listed):
    (listed / "serve.py").write_text("# why\n" + SERVING)

    assert execute(listed, COMMAND_OF_FEW, DVC_STAGE="training@few")[0] == 0


def test_a_file_that_the_stage_runs_now_and_did_not_before_is_named(listed):
    (listed / "artifacts" / "code" / "few_serve").write_text(listing_of(listed))

    code, err = execute(listed, COMMAND_OF_FEW, DVC_STAGE="training@few")

    assert code == 75
    assert "stages/losses/bco.py" in err


def test_a_graph_without_the_stage_code_is_not_held_to_it(serving):
    assert execute(serving, COMMAND_OF_FEW, DVC_STAGE="training@few") == (0, "")
