"""Several processes for one stage, where the machine asks for them.

The environment variable PLUMBLINE_LAUNCH holds the arguments of a launcher: a profile of accelerate and what overrides
it (`pipelines/accelerate/ddp.yaml --num_processes 2`), or `torchrun` and its arguments (`torchrun --nproc_per_node 2`).
The command in dvc.yaml stays as it is: the stage's own process starts the launcher on the same command line, waits, and
publishes what the processes wrote. How many there are is a matter of the machine, as devices are.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.contracts.stage import EXIT_STOPPED, RUN_KEY, StageFailure, ask_to_die_with_parent

VARIABLE = "PLUMBLINE_LAUNCH"
_GRACE_S = 10.0


@dataclass(frozen=True)
class Launcher:
    """A launcher and its arguments."""

    command: tuple[str, ...]
    """What stands before the stage's own command line."""
    machine_rank: int
    """Number of this machine, from 0. The first machine publishes; the others compute."""

    @property
    def is_first_machine(self) -> bool:
        """Whether outputs are published from here."""
        return self.machine_rank == 0

    def run(self, words: Sequence[str], key: str) -> None:
        """Start the processes and wait until all have ended; none outlives this one.

        Args:
            words: the stage's own command line, without the interpreter.
            key: of the run; the processes derive from it where to write.

        Raises:
            StageFailure: a process failed, and the launcher said which; or this one was told to end.
        """
        process = subprocess.Popen(
            [sys.executable, *self.command, *words],
            env={**os.environ, RUN_KEY: key},
            # Safe here: it makes one system call, and this process has no thread but the watch over its own parent.
            preexec_fn=ask_to_die_with_parent if sys.platform.startswith("linux") else None,  # noqa: PLW1509
        )
        # Told to end, they stop between two steps; a process that ended before them would take them along.
        told: list[int] = []

        def hand_on(number: int, _frame: Any) -> None:
            told.append(number)
            process.terminate()

        before = signal.signal(signal.SIGTERM, hand_on)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(process)
        if status and told:
            raise StageFailure(
                "stopped by SIGTERM; the same command goes on from its last checkpoint", status=EXIT_STOPPED
            )
        if status:
            raise StageFailure(
                f"the processes that {VARIABLE} asks for ended with status {status}; what went wrong stands above"
            )


def unlaunched(may_share: bool = False) -> None:  # noqa: ARG001, FBT - as `launcher`
    """For a training that runs in one process: say so where PLUMBLINE_LAUNCH asks for several."""
    if os.environ.get(VARIABLE):
        print(f"{VARIABLE} is for trainings by BCO, KTO and DPO; this one runs in one process", flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launcher(may_share: bool = True) -> Launcher | None:
    """The launcher that PLUMBLINE_LAUNCH describes; None if it is unset or empty.

    Args:
        may_share: whether several processes may run the stage; if not, that is said where several are asked for.

    Raises:
        ValueError: it names neither torchrun nor a profile, or a profile that can't be read.
    """
    words = shlex.split(os.environ.get(VARIABLE, ""))
    if not words or not may_share:
        unlaunched()
        return None
    first, *rest = words
    if first == "torchrun":
        if _value(rest, "nnodes") not in {None, "1", "1:1"} and _value(rest, "node_rank") is None:
            raise ValueError(
                f"{VARIABLE}: expected --node_rank beside --nnodes, found none; each machine says its own, from 0, and "
                "outputs are published by the first alone"
            )
        return Launcher(("-m", "torch.distributed.run", *rest), _number(rest, "node_rank", 0))
    if Path(first).suffix not in {".yaml", ".yml"}:
        raise ValueError(
            f"{VARIABLE}: expected a profile of accelerate such as pipelines/accelerate/ddp.yaml, or torchrun, each "
            f"with its arguments, found {first!r}"
        )
    try:
        profile = yaml.safe_load(Path(first).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{VARIABLE}: expected a profile at {first}, found none; give its path from here") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{first}: expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(profile, dict):
        raise ValueError(f"{first}: expected the settings of accelerate by name, found {type(profile).__name__}")
    rank = _number(rest, "machine_rank", int(profile.get("machine_rank", 0)))
    return Launcher(("-m", "accelerate.commands.launch", "--config_file", first, *rest), rank)


def _number(words: Sequence[str], name: str, default: int) -> int:
    """Value of an argument that is a number.

    Raises:
        ValueError: it is something else.
    """
    text = _value(words, name)
    if text is None:
        return default
    if not text.isdecimal():
        raise ValueError(f"{VARIABLE}: expected --{name} as a number, found {text!r}")
    return int(text)


def _value(words: Sequence[str], name: str) -> str | None:
    """Value of an argument, written `--name 1` or `--name=1`, with underscores or dashes; None if it isn't there."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag.removeprefix("--").replace("-", "_") == name:
            return value or following
    return None
