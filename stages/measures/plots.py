"""Tables for `dvc plots show`, which puts what they hold into a script of its page as it is."""

import html
from pathlib import Path

import pandas as pd


def write_plot(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, its texts escaped as in HTML, so that no text of a log ends that script.

    Args:
        path: file to write.
        table: numbers, and texts from anywhere; `stages.page.files.read_csv` gives them back as they were.
    """
    texts = table.select_dtypes(exclude="number").map(
        lambda value: html.escape(value, quote=False) if isinstance(value, str) else value
    )
    table.assign(**{str(name): texts[name] for name in texts}).to_csv(path, index=False)
