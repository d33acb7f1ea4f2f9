"""Writes a page: values into its markup, and the digests of what it was made of."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from stages.contracts.files import tree_digest, write_text


def write_page(page: Path, source: str, *, read: Mapping[str, Path], **values: Any) -> None:
    """Write a page.

    Args:
        page: HTML file to write.
        source: its markup as a Jinja template.
        read: by what the page calls it, each file or folder that it was made of.
        values: what the markup puts in; each is escaped unless it is Markup, and only charts are.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    inputs = [(name, tree_digest(path)[:16]) for name, path in read.items()]
    text = environment.from_string(source).render(inputs=inputs, **values)
    write_text(page, text + "\n")
    print(f"one page of {len(text) / 1000:,.0f} kB")


@contextmanager
def metrics_are_there() -> Iterator[None]:
    """Say of a metric that a page shows and that isn't there what to do about it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"expected {error} among the metrics, found none; rerun the stages before") from None
