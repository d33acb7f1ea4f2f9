"""What must hold between dvc.yaml, params.yaml and the code: each entry against the signature of its stage."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.graph import StageNode, is_rows
from pipelines.params import Params
from stages.code import code_listings, code_names
from stages.contracts.stage import CODE, parse_listing, role_of
from stages.trainers import METHODS

SOURCE = Path("stages")
METRICS_ARGUMENTS = {"metrics", "verdict"}
PLOTS_ARGUMENTS = {"plots"}
WRITTEN = {"artifacts", "models", "metrics", "plots", "reports"}
"""Folders of what stages write."""


def graph_problems(nodes: Sequence[StageNode], params: Params) -> list[str]:
    """A sentence per difference between an entry of dvc.yaml and what its stage reads and writes.

    Args:
        nodes: the graph.
        params: params.yaml; of its `inputs`, stages may depend on paths that no flag names.
    """
    written = {out for node in nodes for out in node.outs}
    known = _Known({str(value) for value in params.inputs.model_dump().values()}, written, params, code_names(SOURCE))
    return [f"dvc.yaml: {node.name} {problem}" for node in nodes for problem in _problems_of(node, known)] + [
        f"dvc.yaml: {node.name} {problem}" for node in nodes for problem in start_problems(node, nodes)
    ]


class _Known(NamedTuple):
    """What an entry is held against."""

    inputs: set[str]
    written: set[str]
    params: Params
    code: set[str]


def _problems_of(node: StageNode, known: _Known) -> Iterator[str]:
    if node.module is None:
        if any("stages" in word for word in node.command):
            yield "runs a stage otherwise than as `python -m stages.NAME`, so that nothing is known of it"
        return
    try:
        entry = _entry_of(node)
    except ModuleNotFoundError:
        near = get_close_matches(node.module, [f"stages.{name}" for name in known.code], n=1)
        yield f"runs {node.module}, and there is no such stage" + (f"; did you mean {near[0]}?" if near else "")
        return
    yield from entry.problems
    yield from _choice_problems(node, known.params)
    if not entry.problems:
        own = [dep for dep in node.deps if _is_own(dep, known.inputs)]
        yield from _differences("deps", entry.reads, node.deps, also=own)
        for kind, listed in node.outputs.items():
            yield from _differences(kind, entry.writes[kind], listed)
        yield from _differences("params", entry.params, node.params)
    yield from _dep_problems(node, known)


def _dep_problems(node: StageNode, known: _Known) -> Iterator[str]:
    for dep in node.deps:
        is_code = Path(dep).parent == CODE
        if is_code and Path(dep).name not in known.code:
            yield f"depends on {dep}, and no stage or method is called so"
        elif dep.partition("/")[0] in WRITTEN and not _is_written(dep, known.written):
            yield f"depends on {dep}, which no stage writes{_remedy(dep, known)}"


def _choice_problems(node: StageNode, params: Params) -> Iterator[str]:
    """What params.yaml asks of a stage and its entry doesn't give, or the other way round."""
    given = _flags(node.command)
    name = given.get("--params", [""])[0]
    section: Any = params
    for part in name.split(".") if name else []:
        section = getattr(section, part, None)
    if "--method" in given:
        method, key = given["--method"][0], name.rpartition(".")[2]
        expected = getattr(section, "method", None) or (key if key in METHODS else method)
        if method != expected:
            yield f"trains {name} by {method}, which params.yaml has by {expected}"
    wants_models = getattr(section, "reward", None) == "model"
    if "reward_models" in _arguments_of(node) and wants_models != ("--reward-models" in given):
        yield (
            f"{'lacks' if wants_models else 'gives'} --reward-models, and {name}.reward is {section.reward}; they go "
            "together"
        )
    if node.module == "stages.training_rows":
        yield from _rows_problems(given, name, section, params)
    if node.module == "stages.prompt_embedding":
        encoder, watched = params.prompt_embedding.encoder, params.inputs.encoder
        if Path(encoder).is_dir() and Path(encoder) != Path(watched):
            yield f"reads the encoder {encoder}, which DVC doesn't watch; set inputs.encoder to it as well"


def _rows_problems(given: Mapping[str, Sequence[str]], name: str, section: Any, params: Params) -> Iterator[str]:
    """What params.yaml asks of rows and their entry doesn't give."""
    key = Path(given.get("--rows", [""])[0]).name
    chosen = getattr(params.rows, key, None)
    if not name and chosen is not None and chosen != type(chosen)():
        yield f"lacks --params rows.{key}, which params.yaml sets"
    columns = [
        f"{kind}_column" for kind in ("margin", "origin") if getattr(section, f"{kind}_column", None) is not None
    ]
    if columns and "--completions" not in given:
        yield f"lacks --completions, from which {name}.{columns[0]} is read"
    wants_origins = "origin_column" in columns
    if wants_origins != ("--origin-reference-logps" in given):
        yield (
            f"{'lacks' if wants_origins else 'gives'} --origin-reference-logps, and {name or 'its section'} has "
            f"{'an' if wants_origins else 'no'} origin_column; they go together"
        )


def start_problems(node: StageNode, nodes: Sequence[StageNode]) -> Iterator[str]:
    """Where rows were scored under another model than a training starts from and is compared with."""
    start = _flags(node.command).get("--base-model", [""])[0] if node.module == "stages.training" else ""
    behind = {out: other for other in nodes for out in other.outs}
    waiting, seen = ([dep for dep in node.deps if is_rows(dep)] if start else []), set()
    while waiting:
        maker = behind.get(waiting.pop())
        if maker is None or maker.name in seen:
            continue
        seen.add(maker.name)
        waiting += [dep for dep in maker.deps if is_rows(dep)]
        of_origins = _flags(maker.command).get("--origin-reference-logps", []) if maker.module else []
        for dep in maker.deps:
            if (
                dep not in of_origins
                and "reference_logps" in Path(dep).parent.name
                and Path(dep).name != Path(start).name
            ):
                yield f"starts from {start}, and {maker.name} reads log-probabilities of another model, {dep}"


def _differences(kind: str, needed: Iterable[str], listed: Iterable[str], also: Iterable[str] = ()) -> Iterator[str]:
    """What a list of dvc.yaml lacks and what it has too much; `also` it may have."""
    missing, idle = set(needed).difference(listed), set(listed).difference(needed, also)
    yield from (f"lacks {name} in its {kind}, which it needs" for name in sorted(missing))
    yield from (f"has {name} in its {kind}, which it has no use for" for name in sorted(idle))


def _is_own(dep: str, inputs: set[str]) -> bool:
    """Whether a dep is a path of `inputs`, or the user's own code, which a section names and no flag."""
    return dep in inputs or (dep.endswith(".py") and Path(dep).parts[0] not in {"stages", "pipelines"})


def _is_written(dep: str, written: set[str]) -> bool:
    return any(dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in written)


def _remedy(dep: str, known: _Known) -> str:
    folder, name = Path(dep).parent.name, Path(dep).name
    if "reference_logps" not in folder or name in known.params.references:
        return ""
    if not _is_written(f"models/{name}", known.written):
        return f"; no stage writes models/{name} either, so look at start_from"
    return f"; add {name} to `references` in params.yaml, so that what starts from it is scored"


@dataclass(frozen=True)
class _Entry:
    """What a command says that its stage reads and writes."""

    reads: list[str]
    writes: dict[str, list[str]]
    params: list[str]
    problems: list[str]


def _arguments_of(node: StageNode) -> Mapping[str, Parameter]:
    return signature(import_module(str(node.module)).run, eval_str=True).parameters


def _entry_of(node: StageNode) -> _Entry:
    arguments = _arguments_of(node)
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
