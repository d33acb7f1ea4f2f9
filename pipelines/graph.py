"""The graph as dvc.yaml defines it, read through DVC, and what must hold between it and the code."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from stages.contracts.closure import code_files


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

    def modules(self) -> list[str]:
        """Modules of this project that the command runs: the stage, and the trainer of its method."""
        words = list(self.command)
        modules = [words[words.index("-m") + 1]] if "-m" in words else []
        if "--method" in words:
            modules.append(f"stages.trainers.{words[words.index('--method') + 1]}")
        return modules


def read_graph(root: Path = Path()) -> list[StageNode]:
    """The stages of dvc.yaml below `root`, each after the stages that it reads from."""
    # DVC takes a moment to import, so only commands that need the graph pay for it.
    import networkx as nx
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        return [
            StageNode(
                name=stage.addressing,
                command=tuple(shlex.split(stage.cmd)),
                deps=tuple(dict.fromkeys(dep.def_path for dep in stage.deps if not hasattr(dep, "params"))),
                outs=tuple(out.def_path for out in stage.outs),
                upstream=tuple(sorted(other.addressing for other in graph.successors(stage))),
            )
            for stage in reversed(list(nx.topological_sort(graph)))
            if stage.cmd
        ]


def code_problems(nodes: list[StageNode]) -> list[str]:
    """Sentences on source files that a stage runs and dvc.yaml doesn't list, or lists and the stage doesn't run.

    The stages of a group, such as "training@bco" and "training@kto", share one list: it may hold what one of them runs.
    """
    needed = {node.name: {path.as_posix() for path in code_files(node.modules())} for node in nodes}
    problems = []
    for node in nodes:
        group = node.name.partition("@")[0]
        of_group = set().union(*(files for name, files in needed.items() if name.partition("@")[0] == group))
        listed = {dep for dep in node.deps if dep.endswith(".py") and dep.startswith(("stages/", "pipelines/"))}
        where = f"dvc.yaml: {node.name}"
        problems += [f"{where} runs {path}, which its deps don't list" for path in sorted(needed[node.name] - listed)]
        problems += [f"{where} lists {path}, which it doesn't run" for path in sorted(listed - of_group)]
    return problems
