"""What a run came to, read from the metrics of the methods and printed as one table."""

import json
from pathlib import Path
from typing import Any

COLUMNS = ("method", "what", "policy", "start", "difference", "95 % interval")


def method_results(metrics: Path) -> dict[str, dict[str, Any]]:
    """Evaluation metrics by method, of the methods that were evaluated."""
    files = sorted((metrics / "evaluation").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
