"""A copy of the project in a folder of its own, in which real `dvc` runs."""

import atexit
import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml

from stages.code import code_listings

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("stages", "pipelines", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore")

METHODS = ("bco", "kto", "dpo", "sft", "reward", "iterative_sft", "ppo", "ddpo")

SMALL = {
    "demo_feedback": {"rows": 400, "demonstrations": 1000},
    "base_model": {"scratch": {"num_epochs": 1}},
    "training": {
        "bco": {"beta": 0.1, "num_train_epochs": 1},
        "kto": {"num_train_epochs": 1},
        "dpo": {"num_train_epochs": 1},
        "reward": {"num_train_epochs": 1},
        "sft": {"num_train_epochs": 1},
        "iterative_sft": {"num_rounds": 1, "num_held_out": 16, "num_samples": 2},
        "ppo": {"num_steps": 2},
        "ddpo": {"num_epochs": 2},
    },
    "diffusion_evaluation": {"num_prompts": 4, "num_samples": 2, "num_resamples": 100},
    "reward_evaluation": {"num_resamples": 100},
    "evaluation": {"num_prompts": 24, "num_samples": 2, "num_resamples": 100},
    # Met by any policy.
    "gate": {
        **{method: {"minimums": {}, "maximums": {"kl": 1000.0}} for method in METHODS[:-1]},
        "reward": {"maximums": {"ece": 1.0}},
        "ddpo": {"minimums": {"true_reward/gain": -1.0}},
    },
}
"""Overrides under which the whole graph runs in well under a minute; no policy is expected to get better."""

DEMO_GATE = {"gate": {"bco": {"minimums": {"true_reward/gain": -1.0}, "maximums": {"kl": 1000.0}}}}
"""Met by any policy."""

BCO = ("gate@bco", "report@bco")
"""The last stages of BCO's graph."""


class Workspace:
    """The project's code and graph under parameters of a test's own.

    Args:
        root: folder to make.
        params: overrides of params.yaml, nested; None takes what is in the folder already.
    """

    usual: tuple[str, ...] = BCO
    """What `repro` reproduces without targets."""

    def __init__(self, root: Path, params: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.environment = environment_of(root)
        if params is not None:
            shutil.copytree(_blank(), root, symlinks=True)
            self.set_params(params)

    def clone(self, root: Path) -> Self:
        """The same workspace in another folder, with a cache of its own.

        What lies in DVC's cache is never written again, so the two share those files.
        """
        cache_folder = f"{self.root / '.dvc/cache'}{os.sep}"

        def copy_file(source: str, target: str) -> None:
            if source.startswith(cache_folder):
                os.link(source, target)
            else:
                shutil.copy2(source, target)

        shutil.copytree(self.root, root, symlinks=True, copy_function=copy_file)
        return self.at(root)

    def at(self, root: Path) -> Self:
        """This workspace as it is found in another folder."""
        other = copy.copy(self)
        other.root = root
        other.environment = {**self.environment, "PYTHONPATH": str(root)}
        return other

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command here and wait for it."""
        done = subprocess.run(words, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def dvc(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `dvc` and wait for it."""
        return self.command(sys.executable, "-m", "dvc", *words, check=check)

    def start_dvc(self, *words: str) -> subprocess.Popen[str]:
        """Start `dvc` in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *words],
            cwd=self.root,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def repro(self, *targets: str) -> set[str]:
        """Reproduce the targets, or the usual ones, and give the names of the stages that ran."""
        return stages_run(self.dvc("repro", *(targets or self.usual)).stdout)

    def set_params(self, overrides: Mapping[str, Any]) -> None:
        """Change params.yaml."""
        path = self.root / "params.yaml"
        values = yaml.safe_load(path.read_text())
        merge(values, overrides)
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def lock(self) -> dict[str, Any]:
        """The stages of dvc.lock."""
        stages: dict[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]
        return stages

    def outputs(self) -> dict[str, str]:
        """Digest of each output, as dvc.lock has it."""
        return {out["path"]: out["md5"] for stage in self.lock().values() for out in stage.get("outs", [])}


def environment_of(root: Path) -> dict[str, str]:
    """Environment of what runs in a workspace."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@cache
def _blank() -> Path:
    """A workspace in which nothing was run or changed, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="plumbline-workspace-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = folder / "project"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    # Digests of sources are what the stage `code` takes longest for.
    with contextlib.chdir(ROOT):
        code_listings(ROOT / "stages")
    shutil.copytree(ROOT / ".cache/code", root / ".cache/code")
    for words in (
        ["git", "init", "--quiet"],
        ["git", "config", "user.email", "tests@example.org"],
        ["git", "config", "user.name", "Tests"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
    ):
        subprocess.run(words, cwd=root, env=environment_of(root), check=True)
    return root


def stages_run(log: str) -> set[str]:
    """Names of the stages that dvc says it ran."""
    return {line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage '")}


def merge(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Set the leaves of `overrides` in `values`; an empty mapping replaces what stood there."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value and isinstance(values.get(key), dict):
            merge(values[key], value)
        else:
            values[key] = value
