"""How the experiments of a sweep compare, by the metrics that the gates ask about."""

from collections.abc import Mapping, Sequence

from stages.contracts.stage import read_params
from stages.measures.metric_rows import metric_rows

MAX_COLUMNS = 8


def results_markdown(experiments: Mapping[str, str], metrics: Sequence[str]) -> str:
    """A table with a row per experiment.

    Args:
        experiments: by what was chosen, the name that DVC gave the experiment.
        metrics: metrics files to read from each.
    """
    rows = {choice: numbers_of(name, metrics) for choice, name in experiments.items()}
    known = dict.fromkeys(metric for numbers in rows.values() for metric in numbers)
    asked = asked_by_gates()
    columns = [metric for metric in known if metric.rpartition(": ")[2] in asked] or list(known)[:MAX_COLUMNS]
    lines = [
        f"| choice | experiment | {' | '.join(columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for choice, numbers in rows.items():
        cells = " | ".join(f"{numbers[column]:.4g}" if column in numbers else "" for column in columns)
        lines.append(f"| {choice} | {experiments[choice]} | {cells} |")
    return "\n".join(lines)


def numbers_of(experiment: str, metrics: Sequence[str]) -> dict[str, float]:
    """Numbers of an experiment, by file and path in it, such as "metrics/evaluation/bco.json: kl"."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        shown = repo.metrics.show(targets=list(metrics), revs=[experiment], hide_workspace=True)
    files = shown.get(experiment, {}).get("data", {})
    return {
        f"{path}: {row.metric}": float(row.value)
        for path, content in files.items()
        for row in metric_rows(content.get("data") or {})
        if not isinstance(row.value, str)
    }


def asked_by_gates() -> set[str]:
    """Names of the metrics that some gate of params.yaml puts a limit on."""
    sections = read_params("").get("gate") or {}
    return {
        metric
        for section in sections.values()
        for limits in ("minimums", "maximums")
        for metric in (section or {}).get(limits) or {}
    }
