"""A workspace whose graph only counts: the real pipelines, runtime and DVC, with stages that take as long as asked."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.prefect_server import PrefectServer, wait_until
from tests.workspace import Workspace

STAGE = '''
"""Stage `count`: counts up to a number, one step after the other."""

import time
from pathlib import Path

from stages.contracts.files import write_json
from stages.contracts.stage import Input, Output, Scratch, Section, StageFailure, stage_main


class CountParams(Section):
    """Section `counts.NAME`."""

    steps: int = 2
    """How far to count."""
    step_s: float = 0.0
    """Seconds that a step takes."""
    fails_at: int | None = None
    """Step at which the first attempt fails."""
    linger_s: float = 0.0
    """Seconds between the last step and the end."""
    waits_for: str | None = None
    """File without which it doesn't end; nothing is printed meanwhile."""
    exit_status: int = 0
    """How to end after the last step."""


def run(*, source: Input, total: Output, state: Scratch, params: CountParams) -> None:
    """Count, going on from where an earlier attempt was ended."""
    done = state / "done"
    first = int(done.read_text()) if done.exists() else 0
    print(f"counting from {first}", flush=True)
    for step in range(first, params.steps):
        time.sleep(params.step_s)
        done.write_text(str(step + 1))
        print(f"counting: {100 * (step + 1) // params.steps:3d}%|", end="\\r", flush=True)
        print(f"step {step + 1} of {params.steps}", flush=True)
        if step + 1 == params.fails_at and first == 0:
            raise StageFailure("tripped", status=1)
    if params.exit_status:
        raise StageFailure("the count is not good enough", status=params.exit_status)
    write_json(total, {"total": params.steps})
    time.sleep(params.linger_s)
    while params.waits_for and not Path(params.waits_for).exists():
        time.sleep(0.05)


if __name__ == "__main__":
    stage_main(run)
'''

PARAMS = '''
"""The model of params.yaml."""

from pathlib import Path
from typing import Any

from stages.contracts.stage import PARAMS_FILE, Section, parse_section, read_params
from stages.count import CountParams


def load_params(path: Path = PARAMS_FILE) -> "Params":
    """All of params.yaml, checked."""
    return parse_section(Params, read_params("", path), where="")


class Params(Section):
    """All of params.yaml."""

    counts: dict[str, CountParams] = {}
    graph: dict[str, Any] = {}
'''

GRAPH = """
stages:
  count:
    foreach: ${graph}
    do:
      cmd: python -m stages.count --params counts.${key} --source ${item.source} --total out/${key}.json
      deps:
        - ${item.source}
        - stages/count.py
      params:
        - counts.${key}
      metrics:
        - out/${key}.json
      meta: {resources: cpu, retries: "${item.retries}", timeout_s: "${item.timeout_s}"}
"""


class Counting(Workspace):
    """A workspace of counting stages.

    Args:
        root: folder to make.
        edges: by name of a stage, the stage that it reads from; None reads a file of the repository.
        counts: parameters of each stage, by its name.
        meta: retries and timeout_s of each stage, by its name.
        server: where its runs are shown; without one, each run has a server of its own.
    """

    usual = ()

    def __init__(
        self,
        root: Path,
        edges: Mapping[str, str | None],
        counts: Mapping[str, Mapping[str, Any]] | None = None,
        meta: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        server: PrefectServer | None = None,
    ) -> None:
        super().__init__(root, {})
        (root / "stages/count.py").write_text(STAGE.lstrip())
        (root / "pipelines/params.py").write_text(PARAMS.lstrip())
        (root / "seed.txt").write_text("a file to read\n")
        (root / ".gitignore").write_text("/out/\n/.cache/\n/checkpoints/\n__pycache__/\n*.tmp-*\n")
        (root / "params.yaml").write_text("{}\n")
        self.add(edges, counts, meta)
        (root / "dvc.yaml").write_text(GRAPH.lstrip())
        self.environment["PREFECT_HOME"] = str(root.parent / "prefect")
        if server:
            self.environment.update(server.environment)
            # Runs that are created for what `serve` serves are looked for more often than every ten seconds.
            self.environment["PREFECT_RUNNER_POLL_FREQUENCY"] = "2"

    def add(
        self,
        edges: Mapping[str, str | None],
        counts: Mapping[str, Mapping[str, Any]] | None = None,
        meta: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add stages; arguments as those of the workspace."""
        graph = {
            name: {
                "source": f"out/{source}.json" if source else "seed.txt",
                "retries": 0,
                "timeout_s": 600,
                **(meta or {}).get(name, {}),
            }
            for name, source in edges.items()
        }
        self.set_params({"counts": {name: dict((counts or {}).get(name, {})) for name in edges}, "graph": graph})

    def commit(self) -> None:
        """Commit everything."""
        self.command("git", "add", "--all")
        self.command("git", "commit", "--quiet", "-m", "Start")

    def pipelines(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m pipelines` and wait for it; its errors are in its output."""
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *words],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def start(self, *words: str, hears_interrupts: bool = True) -> "Started":
        """Start `python -m pipelines` and don't wait."""
        return Started(self, words, hears_interrupts=hears_interrupts)

    def total(self, name: str) -> Any:
        """What a stage counted."""
        path = self.root / f"out/{name}.json"
        return yaml.safe_load(path.read_text())["total"] if path.exists() else None

    def processes(self) -> list[psutil.Process]:
        """Every process that runs here, but zombies."""
        found = []
        for process in psutil.process_iter():
            try:
                is_here = process.cwd() == str(self.root) and process.status() != psutil.STATUS_ZOMBIE
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if is_here:
                found.append(process)
        return found

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes here whose command line has all of these words, shells left out."""
        found = []
        for process in self.processes():
            try:
                line = process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if all(word in line for word in words) and "-c" not in line:
                found.append(process)
        return found

    def wait_for_nobody(self, timeout_s: float = 15) -> None:
        """Wait until no process is left here."""
        wait_until(lambda: not self.processes(), timeout_s=timeout_s)


class Started:
    """A command that goes on; its output is in a file."""

    def __init__(self, workspace: Counting, words: tuple[str, ...], *, hears_interrupts: bool) -> None:
        self.workspace = workspace
        self.path = workspace.root.parent / f"{words[0]}-{len(list(workspace.root.parent.glob('*.log')))}.log"
        # A shell starts what runs in the background with SIGINT ignored, and its children inherit that.
        action = signal.SIG_DFL if hears_interrupts else signal.SIG_IGN
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *words],
                cwd=workspace.root,
                env={**workspace.environment, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, action),  # noqa: PLW1509
            )

    def log(self) -> str:
        """What it printed so far."""
        return self.path.read_text(errors="replace")

    def wait_for(self, text: str, *, timeout_s: float = 60) -> None:
        """Wait until it printed this."""

        def look() -> bool:
            assert self.process.poll() is None or text in self.log(), self.log()
            return text in self.log()

        wait_until(look, timeout_s=timeout_s)

    def end(self) -> None:
        """Kill it if it still runs; everything that it started goes with it."""
        self.process.kill()
        self.process.wait()
