"""The few numbers of an evaluation that everyone asks for, as a table of plain text."""

from collections.abc import Mapping
from typing import Any

from stages.measures.metric_rows import metric_rows

_ROWS = (
    # what is shown, name of the metric, name of the metric of the start
    ("true reward", "true_reward/policy", "true_reward/reference"),
    ("  gain", "true_reward/gain", None),
    ("win rate against the start", "win_rate", None),
    ("length, tokens", "length/policy", "length/reference"),
    ("KL to the start, nats", "kl", None),
    ("accuracy of the reward", "accuracy", None),
    ("AUC of the reward", "auc", None),
    ("pair accuracy", "pair_accuracy", None),
    ("margin of the reward", "margin", None),
)
_HEAD = ("held-out prompts", "start", "policy", "95 % interval")


def results_table(metrics: Mapping[str, Any]) -> str:
    """The table, of the metrics that were measured.

    Args:
        metrics: what the stage `evaluation` wrote.
    """
    lines = [_HEAD]
    found = {row.metric: row for row in metric_rows(metrics)}
    for title, name, start_name in _ROWS:
        if name in found:
            start = f"{found[start_name].value:.3f}" if start_name in found else ""
            lines.append((title, start, f"{found[name].value:.3f}", f"{found[name].low:.3f} to {found[name].high:.3f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    rows = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    counts = metrics["counts"]
    if "sampled_prompts" in counts:
        samples = f"{counts['sampled_prompts']} prompts, {counts['samples_per_prompt']} samples of each"
        below = f"{samples}; {counts['rows']} labelled rows" if "rows" in counts else samples
    else:
        below = f"{counts['pairs']} pairs"
    return "\n".join([rows[0], rule, *rows[1:], rule, below])
