"""The graph as dvc.yaml defines it, read through DVC, and what must hold between it and the code."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from stages.contracts.placeholders import with_values
from stages.contracts.plain_yaml import load_yaml
from stages.contracts.stage import CODE, PARAMS_FILE, read_params, value_named

CODE_STAGE = "code"
"""Name of the stage that all others read from and whose result each reads a file of; an edge that says nothing."""


@dataclass(frozen=True)
class RunPolicy:
    """How a stage is run, from `meta` in dvc.yaml; it never changes what the stage writes."""

    resources: str = "cpu"
    """What it needs a slot of: "cpu", or "accelerator"."""
    retries: int = 0
    """How often it is started again after it failed."""
    timeout_s: float | None = 14400
    """Seconds after which it is killed; None waits for ever."""

    @staticmethod
    def from_meta(stage: str, meta: Mapping[str, Any] | None) -> "RunPolicy":
        """The policy that `meta` of a stage asks for.

        Raises:
            ValueError: a key is unknown or a value makes no sense.
        """
        values = dict(meta or {})
        for key in values.keys() - RunPolicy.__dataclass_fields__.keys():
            near = get_close_matches(key, RunPolicy.__dataclass_fields__, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(RunPolicy.__dataclass_fields__)}"
            raise ValueError(f"dvc.yaml: {stage}: meta.{key} is unknown; {hint}")
        policy = RunPolicy(**values)
        if policy.resources not in {"cpu", "accelerator"}:
            raise ValueError(f"dvc.yaml: {stage}: expected meta.resources cpu or accelerator, found {policy.resources}")
        if not isinstance(policy.retries, int) or policy.retries < 0:
            raise ValueError(f"dvc.yaml: {stage}: expected meta.retries of 0 or more, found {policy.retries}")
        if policy.timeout_s is not None and not (isinstance(policy.timeout_s, int | float) and policy.timeout_s > 0):
            raise ValueError(f"dvc.yaml: {stage}: expected meta.timeout_s in seconds, found {policy.timeout_s}")
        return policy


@dataclass(frozen=True)
class StageNode:
    """One stage of the resolved graph."""

    name: str
    """As DVC calls it, such as "training@bco"."""
    command: tuple[str, ...]
    deps: tuple[str, ...]
    """Paths that the stage reads, code among them."""
    outs: tuple[str, ...]
    upstream: tuple[str, ...]
    """Names of the stages whose outputs it reads."""
    metrics: tuple[str, ...] = ()
    """Those of `outs` that hold metrics."""
    plots: tuple[str, ...] = ()
    """Those of `outs` that hold curves."""
    params: tuple[str, ...] = ()
    """Dotted names of the parameters that it depends on."""
    policy: RunPolicy = RunPolicy()

    @property
    def outputs(self) -> dict[str, tuple[str, ...]]:
        """`outs` by where dvc.yaml lists them."""
        others = {*self.metrics, *self.plots}
        outs = tuple(out for out in self.outs if out not in others)
        return {"outs": outs, "metrics": self.metrics, "plots": self.plots}

    @property
    def is_gate(self) -> bool:
        """Whether it only judges what others measured."""
        return self.module == "stages.gate"

    @property
    def module(self) -> str | None:
        """The stage of this project that the command runs, as a dotted name; None for a command of another kind."""
        words = self.command
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        return module if module.startswith("stages.") else None

    @property
    def code(self) -> str | None:
        """Name of its file below artifacts/code; None if it depends on none."""
        found = [Path(dep).name for dep in self.deps if Path(dep).parent == CODE]
        return found[0] if found else None

    @property
    def feeding(self) -> tuple[str, ...]:
        """`upstream` without the stage `code`: those whose results, where they change, make it run again."""
        return tuple(name for name in self.upstream if name != CODE_STAGE)

    def serves(self, method: str) -> bool:
        """Whether it is of a method alone: by its name, or as what it writes is named after the method."""
        own = {Path(out).stem for out in self.outs if Path(out).parent.name != "reference_logps"}
        return self.name.partition("@")[2] == method or method in own


def read_graph(root: Path = Path()) -> list[StageNode]:
    """The stages of dvc.yaml below `root`, each after the stages that it reads from."""
    # DVC takes a moment to import, so only commands that need the graph pay for it.
    from dvc.repo import Repo

    recorded_stages(root / "dvc.lock")  # which says better than DVC what to do about a file that a kill cut off
    with Repo(str(root)) as repo:
        return nodes_of(repo.index.graph, root)


def nodes_of(graph: Any, root: Path = Path()) -> list[StageNode]:
    """Those of DVC's stages that run a command, each after those that it reads from.

    Args:
        graph: DVC's graph, with an edge from each stage to each that it reads from.
        root: where dvc.yaml and params.yaml stand.
    """
    import networkx as nx

    params = read_params("", root / PARAMS_FILE)
    value_of = partial(value_named, values=params)
    stages = reversed(list(nx.topological_sort(graph)))
    return [_node_of(stage, graph, value_of) for stage in stages if stage.cmd]


def _node_of(stage: Any, graph: Any, value_of: Callable[[str], Any]) -> StageNode:
    return StageNode(
        name=stage.addressing,
        command=tuple(with_values(shlex.split(stage.cmd), value_of=value_of, stage=stage.addressing)),
        deps=tuple(dict.fromkeys(dep.def_path for dep in stage.deps if not hasattr(dep, "params"))),
        outs=tuple(out.def_path for out in stage.outs),
        upstream=tuple(sorted(other.addressing for other in graph.successors(stage) if other.cmd)),
        metrics=tuple(out.def_path for out in stage.outs if out.metric),
        plots=tuple(out.def_path for out in stage.outs if out.plot),
        params=tuple(name for dep in stage.deps if hasattr(dep, "params") for name in dep.params),
        policy=RunPolicy.from_meta(stage.addressing, stage.meta),
    )


def targets_of(methods: Sequence[str], nodes: Sequence[StageNode]) -> list[str]:
    """The last stages of the methods: those of each that no other of its stages reads from.

    Args:
        methods: names of methods, such as "bco", or of further trainings.
        nodes: the graph.

    Raises:
        ValueError: the graph has no such method; the nearest name is given.
    """
    known = sorted({Path(out).name for node in nodes for out in node.outs if is_rows(out)})
    found = []
    for method in methods:
        if method not in known:
            near = get_close_matches(method, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"expected a method of the graph ({', '.join(known)}), found {method!r}{meant}")
        own = stages_of(method, nodes)
        read = {name for node in own for name in node.upstream}
        found += [node.name for node in own if node.name not in read]
    return found


def is_rows(path: str) -> bool:
    """Whether a path is that of the rows that a method learns from."""
    return Path(path).parent == Path("artifacts", "rows")


def stages_of(method: str, nodes: Sequence[StageNode]) -> list[StageNode]:
    """The stages that are a method's own, from its rows to its report."""
    return [node for node in nodes if node.serves(method)]


def recorded_stages(lock: Path = Path("dvc.lock")) -> dict[str, Any]:
    """What dvc.lock says of each stage, by its name; nothing where there is no such file.

    Raises:
        ValueError: the file is cut off, as a kill leaves it while DVC rewrites it, or holds the conflict of a merge.
    """
    try:
        text = lock.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    if re.search(r"^<{7} ", text, re.MULTILINE):
        raise ValueError(
            f"{lock}: expected what DVC wrote of each stage, found the conflict of a merge; `git checkout --ours "
            f"{lock} && git add {lock}` keeps this branch's side, and the next run brings the rest up to date; `make "
            "setup` sets up the driver by which git does so itself"
        )
    try:
        stages = load_yaml(text)["stages"]
        # A stage's command is the first thing that DVC writes of it, so this fails on one that was cut off.
        return {name: {"cmd": stage["cmd"], **stage} for name, stage in stages.items()}
    except (AttributeError, TypeError, KeyError, ValueError):
        raise ValueError(
            f"{lock}: expected what DVC wrote of each stage, found it cut off; `git checkout {lock}` brings back what "
            "was committed, and what ran since then comes out of DVC's run cache"
        ) from None
