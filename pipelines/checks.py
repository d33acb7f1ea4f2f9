"""What must hold between dvc.yaml, params.yaml and the code: each entry against the signature of its stage."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from pipelines.graph import StageNode
from stages.code import code_listings
from stages.contracts.stage import CODE, parse_listing, role_of

SOURCE = Path("stages")
METRICS_ARGUMENTS = {"metrics", "verdict"}
PLOTS_ARGUMENTS = {"plots"}
WRITTEN = {"artifacts", "models", "metrics", "plots", "reports"}
"""Folders of what stages write."""


def graph_problems(nodes: Sequence[StageNode], inputs: Mapping[str, Any]) -> list[str]:
    """A sentence per difference between an entry of dvc.yaml and what its stage reads and writes.

    Args:
        nodes: the graph.
        inputs: section `inputs` of params.yaml, paths that stages may depend on though no flag names them.
    """
    written = {out for node in nodes for out in node.outs}
    paths = {str(value) for value in inputs.values()}
    problems = []
    for node in nodes:
        problems += [f"dvc.yaml: {node.name} {problem}" for problem in _problems_of(node, paths, written)]
    return problems


def _problems_of(node: StageNode, inputs: set[str], written: set[str]) -> Iterator[str]:
    if node.module is not None:
        entry = _entry_of(node)
        yield from entry.problems
        if not entry.problems:
            yield from _differences(
                "deps", entry.reads, node.deps, also=[dep for dep in node.deps if _is_own(dep, inputs)]
            )
            for kind, listed in node.outputs.items():
                yield from _differences(kind, entry.writes[kind], listed)
            yield from _differences("params", entry.params, node.params)
    for dep in node.deps:
        if dep.partition("/")[0] in WRITTEN and not _is_written(dep, written):
            yield f"depends on {dep}, which no stage writes{_remedy(dep)}"


def _differences(kind: str, needed: Iterable[str], listed: Iterable[str], also: Iterable[str] = ()) -> Iterator[str]:
    """What a list of dvc.yaml lacks and what it has too much; `also` it may have."""
    missing, idle = set(needed).difference(listed), set(listed).difference(needed, also)
    yield from (f"lacks {name} in its {kind}, which its command names" for name in sorted(missing))
    yield from (f"has {name} in its {kind}, which its command doesn't name" for name in sorted(idle))


def _is_own(dep: str, inputs: set[str]) -> bool:
    """Whether a dep is a path of `inputs`, or the user's own code, which a section names and no flag."""
    return dep in inputs or (dep.endswith(".py") and Path(dep).parts[0] not in {"stages", "pipelines"})


def _is_written(dep: str, written: set[str]) -> bool:
    return any(dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in written)


def _remedy(dep: str) -> str:
    parts = Path(dep).parts
    if "reference_logps" in parts[1] if len(parts) > 2 else False:
        return f"; add {parts[-1]} to `references` in params.yaml, so that what starts from it is scored"
    return ""


@dataclass(frozen=True)
class _Entry:
    """What a command says that its stage reads and writes."""

    reads: list[str]
    writes: dict[str, list[str]]
    params: list[str]
    problems: list[str]


def _entry_of(node: StageNode) -> _Entry:
    arguments = signature(import_module(str(node.module)).run, eval_str=True).parameters
    roles = {name: role_of(argument.annotation) for name, argument in arguments.items()}
    given = _flags(node.command)
    problems = [
        f"gives {flag}, which {node.module} doesn't take" for flag in sorted(given) if flag not in _known_flags(roles)
    ]
    entry = _Entry([str(CODE / _code_name(node, given))], {"outs": [], "metrics": [], "plots": []}, [], problems)
    for name, argument in arguments.items():
        role, values = roles[name], given.get(f"--{name.replace('_', '-')}")
        if role in {"input", "inputs", "output", "text"} and values is None and argument.default is Parameter.empty:
            problems.append(f"lacks --{name.replace('_', '-')}, which {node.module} needs")
        elif role in {"input", "inputs"}:
            entry.reads.extend(values or [])
        elif role == "output":
            kind = "metrics" if name in METRICS_ARGUMENTS else "plots" if name in PLOTS_ARGUMENTS else "outs"
            entry.writes[kind].extend(values or [])
        elif role == "params" and ("--params" in given or argument.default is Parameter.empty):
            entry.params.extend(given.get("--params") or [str(node.module).rpartition(".")[2]])
    if str(node.module) == "stages.code":
        entry.reads.pop(0)
    return entry


def _known_flags(roles: Mapping[str, str]) -> set[str]:
    said = {f"--{name.replace('_', '-')}" for name, role in roles.items() if role not in {"params", "scratch", "memo"}}
    return said | {"--params"}


def _code_name(node: StageNode, given: Mapping[str, Sequence[str]]) -> str:
    stage = str(node.module).rpartition(".")[2]
    return f"{given['--method'][0]}_{stage}" if "--method" in given else stage


def _flags(command: Sequence[str]) -> dict[str, list[str]]:
    """The words behind each flag of a command."""
    found: dict[str, list[str]] = {}
    words = found.setdefault("", [])
    for word in command[command.index("-m") + 2 :]:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            words = found.setdefault(flag, [value] if equals else [])
        else:
            words.append(word)
    return {flag: values for flag, values in found.items() if flag}


def edited_code(nodes: Sequence[StageNode]) -> dict[str, list[str]]:
    """What an edit makes run again once the stage `code` has run, without running it.

    Args:
        nodes: the graph.

    Returns:
        By name of a stage, the source files that its code file doesn't list as they are; nothing for a graph without
        the stage `code`, and for stages whose code file isn't there.
    """
    if not any(node.module == "stages.code" for node in nodes):
        return {}
    now = code_listings(SOURCE)
    found = {}
    for node in nodes:
        file = CODE / str(node.code)
        if node.code not in now or not file.is_file():
            continue
        listed, present = parse_listing(file.read_text(encoding="utf-8")), parse_listing(now[node.code])
        edited = sorted(path for path in listed.keys() | present.keys() if listed.get(path) != present.get(path))
        if edited:
            found[node.name] = edited
    return found
