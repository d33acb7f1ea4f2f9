"""What makes a module a stage: typed parameters, a command line read off its `run`, and the stage runtime.

DVC hashes a stage's inputs after its command ended, so an edit made while it runs would be recorded as if it had
been read, and a `dvc` that is killed leaves its stage running. The runtime closes both gaps: it fingerprints what
the stage reads before and after and discards a result whose inputs moved, publishes outputs whole or not at all,
and dies with its parent.
"""

import argparse
import ctypes
import difflib
import hashlib
import inspect
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, Protocol, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contracts.closure import code_listing
from stages.contracts.files import files_below, remove_folder, sync, tree_digest, tree_stamp
from stages.contracts.output_locks import outputs_alone
from stages.contracts.placeholders import with_values
from stages.contracts.plain_yaml import load_yaml
from stages.contracts.rows import canonical_json

EXIT_FAILED = 1
EXIT_GATE = 10
EXIT_REJECTED = 30
EXIT_INPUTS_MOVED = 75
EXIT_STOPPED = 75
"""As of `EXIT_INPUTS_MOVED`: the same command, run again, comes to its end."""
EXIT_INTERRUPTED = 130
PARAMS_FILE = Path("params.yaml")
CODE = Path("artifacts", "code")
"""Where the stage `code` writes what each stage runs."""
RUN_KEY = "PLUMBLINE_RUN_KEY"
"""Variable by which a stage tells the processes that it started which run they belong to."""

Input = Annotated[Path, "input"]
"""A file or folder that a stage reads; DVC lists it in `deps`."""
Inputs = Annotated[tuple[Path, ...], "inputs"]
"""Several of them, behind one flag."""
Output = Annotated[Path, "output"]
"""A file or folder that a stage writes; DVC lists it in `outs`, `metrics` or `plots`."""
Scratch = Annotated[Path, "scratch"]
"""A folder that outlives a killed run with the same inputs, for resuming; removed when the stage succeeds."""
Memo = Annotated[Path, "memo"]
"""A folder kept from run to run for results per row; deleting it costs time, never a result."""


class Section(BaseModel):
    """A section of params.yaml. Unknown keys are refused, so a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
    moved: ClassVar[Mapping[str, str]] = {}
    """Keys that stood here before, and where they stand now."""


SectionT = TypeVar("SectionT", bound=Section)


class StageFailure(Exception):
    """A stage ends with an exit status of its own: a gate that isn't met, too many rows rejected."""

    def __init__(self, message: str, *, status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.status = status


class Processes(Protocol):
    """Starts a stage in several processes; `stages.contracts.launch` has it."""

    @property
    def is_first_machine(self) -> bool:
        """Whether outputs are published from this machine."""

    def run(self, words: Sequence[str], key: str) -> None:
        """Run the command line `words` in all processes of the run `key`."""


class MethodOfStage(Protocol):
    """What a stage that serves several methods has to know of the one at hand."""

    @property
    def modules(self) -> Sequence[str]:
        """What the stage runs for it besides its own imports, as dotted names or "module:class"."""

    @property
    def in_processes(self) -> bool:
        """Whether several processes may share the stage."""

    def section(self) -> type[Section]:
        """Its section of params.yaml."""


def parse_section(section: type[SectionT], values: Any, *, where: str) -> SectionT:
    """`values` as a `section`, or one error that names every wrong key, with the nearest right one.

    Args:
        section: the model to check against.
        values: what stands in params.yaml under `where`.
        where: dotted name of the section, for the message.

    Raises:
        ValueError: a key is unknown or missing, or a value is of the wrong kind.
    """
    try:
        return section.model_validate(values if values is not None else {})
    except ValidationError as error:
        problems = "; ".join(_problem(section, where, item) for item in error.errors())
        raise ValueError(f"{PARAMS_FILE}: {problems}") from None


def _problem(section: type[Section], where: str, item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join([*([where] if where else []), *path])
    if item["type"] == "extra_forbidden":
        if moved := _section_at(section, path[:-1]).moved.get(path[-1]):
            return f"{name} is {moved} now; move it there"
        near = difflib.get_close_matches(path[-1], _keys_at(section, path[:-1]), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(_keys_at(section, path[:-1]))}"
        return f"{name} is no parameter{hint}"
    if item["type"] == "missing":
        return f"{name} is missing"
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    return f"{name}: expected {item['msg'].removeprefix('Input should be ')}, found {item['input']!r}"


def _keys_at(section: type[Section], path: list[str]) -> list[str]:
    return list(_section_at(section, path).model_fields)


def _section_at(section: type[Section], path: list[str]) -> type[Section]:
    for part in path:
        field = section.model_fields.get(part)
        options = [] if field is None else [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if inspect.isclass(o) and issubclass(o, Section)), section)
    return section


def stage_main(
    run: Callable[..., None],
    *,
    launcher: Callable[[bool], Processes | None] | None = None,
    method_of: Callable[[str], MethodOfStage] | None = None,
) -> None:
    """Run a stage from its command line, under the stage runtime, and exit with its status.

    Each argument of `run` is a flag (`--reference-logps PATH`); `--params` names the section of params.yaml, by
    default the stage's own name. Errors that a user can cause are printed as one sentence.

    Args:
        run: the stage.
        launcher: says in which processes to run it, told whether several may share it; None from it, as by default,
            means in this one. Of several processes the first alone writes outputs.
        method_of: for a stage with an argument `method`: what the method of that name brings.
    """
    stage = Path(inspect.getfile(run)).stem
    # A stage is killed with the dvc that started it, or it would go on writing what nobody waits for.
    die_with_parent()
    # Threads that spin while they wait made a training of 10 s take 190 s beside other work on two shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        arguments = _parse_arguments(run, stage)
        invocation = _Invocation(run, stage, arguments, method_of)
        if RUN_KEY in os.environ:
            invocation.take_part(os.environ[RUN_KEY])
        else:
            invocation.execute(None if launcher is None else launcher(invocation.may_share))
    except StageFailure as failure:
        _leave(stage, str(failure), failure.status)
    except KeyboardInterrupt:
        _leave(stage, "interrupted; `dvc repro` goes on from what was kept", EXIT_INTERRUPTED)
    except (ValueError, OSError) as error:
        if os.environ.get("PLUMBLINE_TRACEBACK"):
            raise
        _leave(stage, str(error), EXIT_FAILED)


def _leave(stage: str, message: str, status: int) -> NoReturn:
    print(f"{stage}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def die_with_parent(expected: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies; a shell in between is watched as well.

    Args:
        expected: process that started this one. With it, this process also dies if its parent died before the kernel
            was asked; a stage finds that out by itself.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ask_to_die_with_parent()
    is_stage_of_dvc = "DVC_STAGE" in os.environ and RUN_KEY not in os.environ
    if os.getppid() != (expected or parent) or (is_stage_of_dvc and _is_orphan()):
        os.kill(os.getpid(), signal.SIGKILL)
    if _is_shell(parent):
        threading.Thread(target=_watch_grandparent, args=(parent, _parent_of(parent)), daemon=True).start()


def ask_to_die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, which holds on Linux alone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _is_orphan() -> bool:
    """Whether what started this process is gone: what adopts a process stands in another session."""
    parent = os.getppid()
    line = [parent, _parent_of(parent)] if _is_shell(parent) else [parent]
    try:
        return any(pid is None or os.getsid(pid) != os.getsid(0) for pid in line)
    except ProcessLookupError:
        return True


def _is_shell(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() in {"sh", "dash", "bash", "zsh", "ksh"}
    except OSError:
        return False


def _parent_of(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])


def _watch_grandparent(shell: int, grandparent: int | None) -> None:
    pause = threading.Event()
    while not pause.wait(0.2):
        if _parent_of(shell) != grandparent:
            os.kill(os.getpid(), signal.SIGKILL)


def role_of(annotation: Any) -> str:
    """Role of an argument: input(s), output, scratch or memo for paths, params for a section, else text."""
    for option in [annotation, *get_args(annotation)]:
        if get_origin(option) is Annotated:
            return str(get_args(option)[1])
        if inspect.isclass(option) and issubclass(option, Section):
            return "params"
    return str(get_args(annotation)[1]) if get_origin(annotation) is Annotated else "text"


def _parse_arguments(run: Callable[..., None], stage: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=inspect.getdoc(run),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, argument in inspect.signature(run, eval_str=True).parameters.items():
        role = role_of(argument.annotation)
        if role in {"input", "inputs", "output", "text"}:
            kind = str if role == "text" else Path
            required = argument.default is inspect.Parameter.empty
            default = None if required else argument.default
            number = "+" if role == "inputs" else None
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, nargs=number, required=required, default=default)
    parser.add_argument("--params", help="section of params.yaml, by default the stage's name")
    words = with_values(sys.argv[1:], value_of=read_params, stage=os.environ.get("DVC_STAGE", ""))
    return parser.parse_args(words)


@dataclass(frozen=True)
class _Snapshot:
    """What a run read: digests of code and inputs, and its parameters."""

    code: Mapping[str, str]
    inputs: Mapping[str, str]
    params: str

    def key(self) -> str:
        return hashlib.sha256(canonical_json([self.code, self.inputs, self.params]).encode()).hexdigest()[:16]

    def moved_since(self, before: "_Snapshot") -> list[str]:
        names = [
            name
            for new, old in ((self.code, before.code), (self.inputs, before.inputs))
            for name in sorted(new.keys() | old.keys())
            if new.get(name) != old.get(name)
        ]
        return names + ([str(PARAMS_FILE)] if self.params != before.params else [])


class _Invocation:
    """One run of a stage: its arguments by role, and the steps around it."""

    def __init__(
        self,
        run: Callable[..., None],
        stage: str,
        arguments: argparse.Namespace,
        method_of: Callable[[str], MethodOfStage] | None,
    ) -> None:
        self.run = run
        self.stage = stage
        self.method = None if method_of is None else method_of(arguments.method)
        self.code = CODE / (stage if self.method is None else f"{arguments.method}_{stage}")
        self.given = {name: value for name, value in vars(arguments).items() if value is not None}
        self.section_name = arguments.params or stage
        signature = inspect.signature(run, eval_str=True)
        self.annotations = {
            name: argument.annotation
            for name, argument in signature.parameters.items()
            # A section that a stage can do without is read only where it is named.
            if arguments.params or argument.default is not None or role_of(argument.annotation) != "params"
        }
        self.roles = {name: role_of(annotation) for name, annotation in self.annotations.items()}
        # `dvc` names the stage as dvc.yaml has it ("training@bco"); by hand the section does.
        self.label: str = os.environ.get("DVC_STAGE", self.section_name).translate(str.maketrans("@/.", "---"))
        self._digests: dict[Path, tuple[Any, str]] = {}

    @property
    def may_share(self) -> bool:
        """Whether several processes may run it together."""
        return self.method is None or self.method.in_processes

    def _check_code(self, code: Mapping[str, str]) -> None:
        """Refuse to run other code than DVC will record, as after an edit without `dvc repro code`.

        Args:
            code: what this run would run.
        """
        if not self.code.is_file():
            return
        listed = parse_listing(self.code.read_text(encoding="utf-8"))
        other = sorted(name for name in code.keys() | listed.keys() if code.get(name) != listed.get(name))
        if other:
            raise StageFailure(
                f"expected the code that {self.code} lists, found {', '.join(other)} edited since; run `dvc repro "
                "code` first, or `dvc repro` without --single-item",
                status=EXIT_INPUTS_MOVED,
            )

    def paths(self, role: str) -> dict[str, Path]:
        return {name: self.given[name] for name, found in self.roles.items() if found == role and name in self.given}

    def execute(self, processes: Processes | None = None) -> None:
        publishes = processes is None or processes.is_first_machine
        with outputs_alone(self.paths("output").values() if publishes else ()):
            self._execute(processes)

    def _execute(self, processes: Processes | None) -> None:
        values = self._read_section()
        before = self._snapshot(values)
        if "DVC_STAGE" in os.environ:
            self._check_code(before.code)
        key = before.key()
        if processes is not None and not processes.is_first_machine:
            processes.run(_own_command_line(), key)
            return
        outputs = self.paths("output")
        beside = self._beside(key)
        self._sweep(outputs.values())
        try:
            call = self._call_arguments(values, key)
            if processes is None:
                self.run(**call)
            else:
                processes.run(_own_command_line(), key)
            self._check_written(beside)
            moved = self._snapshot(self._read_section()).moved_since(before)
            if moved:
                raise StageFailure(
                    f"inputs changed while the stage ran: {', '.join(moved)}; the result is discarded, run it again",
                    status=EXIT_INPUTS_MOVED,
                )
            for name, path in outputs.items():
                _publish(beside[name], path)
        finally:
            self._sweep(outputs.values())
        # With it goes what runs of other parameters or inputs left that were killed; nothing else would remove it.
        with suppress(OSError):
            remove_folder(self._scratch(key).parent)

    def take_part(self, key: str) -> None:
        """Be one of the processes of the run `key`, whose first process alone is heard and written for."""
        call = self._call_arguments(self._read_section(), key)
        is_heard = os.environ.get("RANK", "0") == "0"
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if is_heard else nowhere):
            self.run(**call)

    def _beside(self, key: str) -> dict[str, Path]:
        """Where each output is written until it is published."""
        return {name: path.with_name(f"{path.name}.tmp-{key}") for name, path in self.paths("output").items()}

    def _scratch(self, key: str) -> Path:
        return Path("checkpoints", self.label, key)

    def _read_section(self) -> Any:
        """Values of the stage's section of params.yaml; None for a stage that has none."""
        return read_params(self.section_name) if "params" in self.roles.values() else None

    def _call_arguments(self, values: Any, key: str) -> dict[str, Any]:
        beside, scratch = self._beside(key), self._scratch(key)
        call: dict[str, Any] = {}
        for name, role in self.roles.items():
            if role == "params":
                section = self._section_type(self.annotations[name])
                call[name] = parse_section(section, values, where=self.section_name)
            elif role == "scratch":
                scratch.mkdir(parents=True, exist_ok=True)
                call[name] = scratch
            elif role == "memo":
                call[name] = Path(os.environ.get("PLUMBLINE_CACHE", ".cache")) / "rows" / self.stage
            elif role == "output":
                beside[name].parent.mkdir(parents=True, exist_ok=True)
                call[name] = beside[name]
            elif role == "inputs" and name in self.given:
                call[name] = tuple(self.given[name])
            elif name in self.given:
                call[name] = self.given[name]
        return call

    def _snapshot(self, values: Any) -> _Snapshot:
        inputs = {}
        for name, path in self._read_paths():
            if not path.exists():
                raise ValueError(
                    f"expected {name} at {path}, found nothing; `dvc repro` makes what a stage writes, "
                    "and the paths of your own data stand in params.yaml under `inputs`"
                )
            inputs[str(path)] = self._digest(path)
        text = {name: str(value) for name, value in self.given.items() if self.roles.get(name) == "text"}
        return _Snapshot(parse_listing(code_listing(self._modules())), inputs, canonical_json([text, values]))

    def _read_paths(self) -> list[tuple[str, Path]]:
        several = [(name, path) for name in self.paths("inputs") for path in self.given[name]]
        return [*self.paths("input").items(), *several]

    def _digest(self, path: Path) -> str:
        stamp = tree_stamp(path)
        known = self._digests.get(path)
        if known is None or known[0] != stamp:
            self._digests[path] = (stamp, tree_digest(path))
        return self._digests[path][1]

    def _modules(self) -> list[str | Path]:
        return [Path(inspect.getfile(self.run)), *(self.method.modules if self.method else [])]

    def _section_type(self, annotation: Any) -> type[Section]:
        if self.method is not None:
            return self.method.section()
        options = [annotation, *get_args(annotation)]
        return next(option for option in options if inspect.isclass(option) and issubclass(option, Section))

    @staticmethod
    def _check_written(beside: Mapping[str, Path]) -> None:
        missing = [name for name, path in beside.items() if not path.exists()]
        if missing:
            raise StageFailure(f"the stage ended without writing {', '.join(missing)}")

    @staticmethod
    def _sweep(outputs: Any) -> None:
        """Remove what an earlier run that was killed, or this one if it failed, left beside the outputs."""
        for path in outputs:
            # The second is what `written_beside` writes to on the way to the first.
            for pattern in (f"{path.name}.tmp-*", f".{path.name}.tmp-*.tmp"):
                for left in path.parent.glob(pattern):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def _own_command_line() -> list[str]:
    """This process's command line, without the interpreter."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name, *sys.argv[1:]] if spec is not None else list(sys.argv)


def parse_listing(text: str) -> dict[str, str]:
    """Digest by path of a listing of source files; see `stages.contracts.closure.code_listing`."""
    return {path: digest for digest, _, path in (line.partition("  ") for line in text.splitlines())}


def read_params(section: str, path: Path = PARAMS_FILE) -> Any:
    """What stands in params.yaml under a dotted name; all of it under "".

    Raises:
        ValueError: the file is missing, is no YAML or unfolds to too much by aliases, or has no such section; the
            nearest name is given.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"expected {path} in {Path.cwd()}, found none; run from the project's root") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return value_named(section, values, path)


def value_named(section: str, values: Any, path: Path = PARAMS_FILE) -> Any:
    """What stands under a dotted name in `values`, which were read from `path`; all of it under "".

    Raises:
        ValueError: there is no such section; the nearest name is given.
    """
    for part in section.split(".") if section else []:
        if not isinstance(values, dict) or part not in values:
            near = difflib.get_close_matches(part, map(str, values) if isinstance(values, dict) else [], n=1)
            raise ValueError(f"{path} has no section {section}" + (f"; did you mean {near[0]}?" if near else ""))
        values = values[part]
    return values


def _publish(beside: Path, path: Path) -> None:
    """Flush what was written and rename it into place; what stood there goes only after that."""
    for file in files_below(beside):
        sync(file)
    if beside.is_dir():
        sync(beside)
    old = path.with_name(f"{path.name}.tmp-old")
    if path.is_dir():
        path.replace(old)
    beside.replace(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
