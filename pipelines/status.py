"""What the next run would do, and why: which stages changed, in what, and which follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.checks import edited_code
from pipelines.graph import CODE_STAGE, StageNode, read_graph, recorded_stages
from pipelines.locks import lock_holder
from pipelines.planning import ancestors, resolve_targets

MAX_REASONS = 4
NOT_CACHED = "(not in cache output)"


class StageStatus(NamedTuple):
    """Where a stage stands."""

    name: str
    state: str
    """"up to date", "changed", "new", "missing" or "follows"."""
    why: str
    """What changed, or after which stage it follows; empty if it is up to date."""


def status_text(targets: Sequence[str] = ()) -> str:
    """A line per stage, and whether a flow has the workspace.

    Args:
        targets: methods or stages to look at, with all that they read from; none stands for all.

    Raises:
        ValueError: a target is none of these.
    """
    nodes = read_graph()
    wanted = ancestors(nodes, resolve_targets(targets, nodes)) if targets else {node.name for node in nodes}
    rows = [row for row in stage_status(nodes) if row.name in wanted]
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{row.name:<{width}}  {row.state:<10}  {row.why}".rstrip() for row in rows]
    holder = lock_holder()
    lines.append("")
    lines.append(f"workspace taken by {holder.sentence()}" if holder else "no flow runs in this workspace")
    return "\n".join(lines)


def stage_status(nodes: Sequence[StageNode]) -> list[StageStatus]:
    """Where each stage of the graph stands, in the order in which they run."""
    from dvc.repo import Repo

    known = recorded_stages()
    with Repo(_wait_for_lock=True) as repo:
        changed = repo.status()
    edited = edited_code(nodes) if CODE_STAGE in changed else {}
    pending: set[str] = set()
    return [
        _status_of(node, changed.get(node.name), pending, edited.get(node.name, []), is_new=node.name not in known)
        for node in nodes
    ]


def _status_of(node: StageNode, changes: Any, pending: set[str], edited: Sequence[str], *, is_new: bool) -> StageStatus:
    if is_new:
        pending.add(node.name)
        return StageStatus(node.name, "new", "never ran here")
    # What an edit of code makes run again is said file by file.
    causes = [*sorted(pending.intersection(node.feeding)), *(f"{CODE_STAGE} ({path})" for path in edited)]
    reasons = list(dict.fromkeys(_reasons(changes or [])))
    if not reasons and not causes:
        return StageStatus(node.name, "up to date", "")
    pending.add(node.name)
    # What an upstream stage is about to write again is no change of this stage's own.
    if not reasons:
        more = f" and {len(causes) - MAX_REASONS} more" if len(causes) > MAX_REASONS else ""
        return StageStatus(node.name, "follows", f"after {', '.join(causes[:MAX_REASONS])}{more}")
    absent = [reason for reason in reasons if reason.endswith(NOT_CACHED)]
    if absent and all(reason in absent or reason.endswith("(deleted)") for reason in reasons):
        return StageStatus(
            node.name, "missing", "what it wrote is neither here nor in DVC's cache; a remote may have it"
        )
    shown = ", ".join(reasons[:MAX_REASONS])
    more = f" and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
    return StageStatus(node.name, "changed", shown + more)


def _reasons(changes: list[Any]) -> Iterator[str]:
    """What DVC says changed, in few words: a parameter by its dotted name, a file by its path."""
    for change in changes:
        if isinstance(change, str):
            yield "the command" if change == "changed command" else change
            continue
        for kind, entries in change.items():
            for path, what in entries.items():
                if isinstance(what, Mapping):
                    yield from (f"{name} ({how})" for name, how in what.items())
                else:
                    yield f"{path} ({what}{' output' if kind == 'changed outs' else ''})"
