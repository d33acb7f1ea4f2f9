"""What a run has to look at: the stages behind its targets, and which of them are as dvc.lock has them."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pipelines.checks import edited_code
from pipelines.graph import CODE_STAGE, StageNode, nodes_of, recorded_stages, stages_of
from stages.contracts.stage import parse_section, read_params


class Plan(NamedTuple):
    """Stages of a run, each after those that it reads from."""

    nodes: list[StageNode]
    unchanged: frozenset[str]
    """Names of the stages whose code, parameters, inputs and outputs are those of dvc.lock."""
    remote: str | None = None
    """Name of DVC's default remote, which gets what the run wrote; None if there is none."""
    edited: Mapping[str, Sequence[str]] = {}
    """By name of a stage that follows from an edit of code, the source files; DVC finds out once `code` has run."""
    sources: Mapping[str, bool] = {}
    """By name of a `.dvc` file of data that the stages read, whether the data changed since it was added."""


def make_plan(targets: Sequence[str] = ()) -> Plan:
    """The stages that `dvc repro TARGETS` would look at, and which of them it would find unchanged.

    One look in this process costs a tenth of asking a `dvc` per stage.

    Args:
        targets: names of stages (`evaluation@bco`), of groups of them (`evaluation`) or of methods (`bco`); none
            stands for the methods in `run.methods` of params.yaml, and for all stages where it has no such section.

    Raises:
        ValueError: a target is none of these; the nearest is named. Or dvc.lock is cut off.
    """
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    recorded_stages()  # which says better than DVC what to do about a file that a kill cut off
    # Without the flag, another dvc that is saving a large output fails this one after three seconds.
    with Repo(_wait_for_lock=True) as repo, repo.lock:
        graph = get_active_graph(repo.index.graph)
        by_name = {stage.addressing: stage for stage in graph}
        nodes = {node.name: node for node in nodes_of(graph)}
        wanted = [by_name[name] for name in resolve_targets(targets or usual_methods(), list(nodes.values()))]
        stages = [stage for stage in plan_repro(graph, wanted or None) if stage.cmd]
        unchanged = {stage.addressing for stage in stages if _is_unchanged(stage)}
        looked_at = [nodes[stage.addressing] for stage in stages]
        edited = edited_code(looked_at) if CODE_STAGE in by_name and CODE_STAGE not in unchanged else {}
        sources = {
            stage.addressing: _has_new_data(stage) for stage in plan_repro(graph, wanted or None) if not stage.cmd
        }
        remote = repo.config["core"].get("remote")
        return Plan(looked_at, frozenset(unchanged - edited.keys()), remote, edited, sources)


def _is_unchanged(stage: Any) -> bool:
    from dvc.lock import LockError

    try:
        return not stage.changed()
    except LockError:
        # Some dvc runs this stage now, or was killed in it a moment ago; the one that is to run it will find out.
        return False


def _has_new_data(source: Any) -> bool:
    """Whether what `dvc add` was told of stands there and is another; what was imported is updated by people."""
    return bool(
        source.is_data_source and not source.deps and all(out.exists for out in source.outs) and source.changed()
    )


def usual_methods() -> list[str]:
    """The methods that params.yaml names for runs without a target; none where it doesn't say."""
    values = (read_params("") or {}).get("run")
    if values is None:
        return []
    from pipelines.params import RunParams

    return parse_section(RunParams, values, where="run").methods


def resolve_targets(targets: Sequence[str], nodes: Sequence[StageNode]) -> list[str]:
    """Names of the stages that the targets stand for, in the order given and each once.

    Args:
        targets: a stage's name, the part of names before the @, or a method.
        nodes: all stages.

    Raises:
        ValueError: a target stands for none; the nearest is named.
    """
    found: dict[str, None] = {}
    names = [node.name for node in nodes]
    for target in targets:
        matches = [name for name in names if target in {name, name.partition("@")[0]}]
        matches = matches or [node.name for node in stages_of(target, nodes)]
        if not matches:
            known = sorted({*names, *(part for name in names for part in name.split("@"))})
            near = get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{target} is no stage or method of dvc.yaml; {hint}")
        found.update(dict.fromkeys(matches))
    return list(found)


def ancestors(nodes: Sequence[StageNode], names: Sequence[str]) -> set[str]:
    """The stages named and all that they read from."""
    found = set(names)
    for node in reversed(nodes):
        if node.name in found:
            found.update(node.upstream)
    return found
