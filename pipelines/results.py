"""What the last run came to, read from the metrics that its evaluations wrote."""

import json
from pathlib import Path

from stages.measures.results_table import results_table


def results_text(root: Path = Path()) -> str:
    """A table per method that was evaluated, and where its report stands.

    Raises:
        ValueError: nothing was evaluated yet.
    """
    files = sorted((root / "metrics" / "evaluation").glob("*.json"))
    if not files:
        raise ValueError("expected metrics of an evaluation below metrics/evaluation, found none; run `dvc repro`")
    parts = []
    for file in files:
        table = results_table(json.loads(file.read_text(encoding="utf-8")))
        page = root / "reports" / f"{file.stem}.html"
        more = f"\nreports/{page.name} shows more" if page.is_file() else ""
        parts.append(f"{file.stem}\n{table}{more}")
    return "\n\n".join(parts)
