"""What a sweep comes to: its experiments, what they share, and what each has to run."""

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.graph import StageNode, read_graph
from pipelines.overrides import overridden, refuse_malformed
from pipelines.planning import ancestors, resolve_targets


class SweepPlan(NamedTuple):
    """Experiments, and stages by their part in them."""

    choices: list[list[str]]
    """Overrides of params.yaml, one list per experiment."""
    shared: list[str]
    """Stages that no choice changes and that others read from; run once, before the experiments."""
    targets: list[str]
    """Stages that each experiment ends with. Gates are none of them: one that isn't met would lose the experiment."""
    metrics: list[str]
    """Metrics files that the choices may change."""


def plan_sweep(overrides: Sequence[str], targets: Sequence[str] = ()) -> SweepPlan:
    """Spread out the values of each override, and find what they change.

    Args:
        overrides: such as "training.bco.beta=0.05,0.1,0.3"; several give all combinations.
        targets: methods or stages to run; none stands for all that the overrides change.

    Raises:
        ValueError: an override can't be read, names no parameter, or changes nothing that is to run.
    """
    choices = spread_out(overrides)
    for choice in choices:
        overridden(choice)
    nodes = read_graph()
    wanted = ancestors(nodes, resolve_targets(targets, nodes)) if targets else None
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    touched = _touched(nodes, keys)
    run = [node for node in nodes if node.name in touched and not node.is_gate and (not wanted or node.name in wanted)]
    if not run:
        raise ValueError(f"--set {' '.join(overrides)} changes no stage that is to run; `dvc dag` shows the stages")
    names = {node.name for node in run}
    read = ancestors(nodes, list(names)) - names
    ends = names - {other for node in run for other in node.upstream}
    return SweepPlan(
        choices=choices,
        shared=[node.name for node in nodes if node.name in read - touched],
        targets=[node.name for node in nodes if node.name in ends],
        metrics=[path for node in run for path in node.metrics],
    )


def spread_out(overrides: Sequence[str]) -> list[list[str]]:
    """All combinations of the values that the overrides list, in their order.

    Raises:
        ValueError: an override can't be read.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps
    from hydra.errors import OverrideParseException

    if not overrides:
        raise ValueError("expected --set with the values to try, such as --set training.bco.beta=0.05,0.1,0.3")
    refuse_malformed(overrides)
    try:
        return [list(choice["params.yaml"]) for choice in get_hydra_sweeps({"params.yaml": list(overrides)})]
    except (OverrideParseException, DvcException) as error:
        raise ValueError(f"--set {' '.join(overrides)}: {' '.join(str(error).split())}") from None


def _touched(nodes: Sequence[StageNode], keys: Sequence[str]) -> set[str]:
    """Stages that depend on one of the parameters, and those that read from them."""
    touched: set[str] = set()
    for node in nodes:
        if any(_overlap(key, name) for key in keys for name in node.params) or touched.intersection(node.upstream):
            touched.add(node.name)
    return touched


def _overlap(one: str, other: str) -> bool:
    """Whether one dotted name is, or lies within, the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
