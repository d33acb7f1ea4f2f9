"""What a stage prints, taken apart: lines for the log, and how far its progress bar is."""

import os
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BAR = re.compile(r"^(?P<what>.*?):?\s*(?P<percent>\d{1,3})%\|")


DVC_HINTS = re.compile(
    r"^(To track the changes with git, run:|To enable auto staging, run:|Use `dvc push` |\tgit add |\tdvc config )"
)
"""Advice of dvc's to somebody at a terminal."""


class Progress(NamedTuple):
    """Where a progress bar stands."""

    what: str
    """The words before the bar; empty if there are none."""
    percent: float


def read_lines(stream: IO[bytes] | None) -> Iterator[str]:
    """Each line as soon as it is whole; a bar drawn over itself is a line each time that it is drawn.

    Args:
        stream: the read end of a pipe.

    Raises:
        ValueError: the process was started without a pipe.
    """
    if stream is None:
        raise ValueError("expected a process whose output is a pipe, found none")
    pending = b""
    while block := os.read(stream.fileno(), 65536):
        *whole, pending = re.split(rb"[\r\n]+", pending + block)
        for line in whole:
            yield line.decode("utf-8", errors="replace").rstrip()
    if pending:
        yield pending.decode("utf-8", errors="replace").rstrip()


def progress_of(line: str) -> Progress | None:
    """Where the progress bar stands that this line draws; None if it draws none."""
    found = BAR.match(line)
    return Progress(found["what"].strip(), min(100.0, float(found["percent"]))) if found else None


def is_worth_logging(line: str) -> bool:
    """Whether a line says anything about the stage."""
    return bool(line) and not DVC_HINTS.match(line)
