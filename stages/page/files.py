"""Metrics and tables that a page is made of, as the stages wrote them."""

import csv
import html
import json
from pathlib import Path
from typing import Any

_TEXTS = {"slice", "metric", "label"}


def read_json(path: Path) -> dict[str, Any]:
    """Metrics by name.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: expected metrics as JSON, found something else; rerun its stage") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected metrics by name, found a {type(found).__name__}; rerun its stage")
    return found


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows with numbers as floats, and empty entries as None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _cell(name: str, text: str) -> Any:
    if name in _TEXTS:
        # As `stages.measures.plots` wrote it.
        return html.unescape(text)
    return float(text) if text else None
