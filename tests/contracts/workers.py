"""What worker processes of a test do; a script imports it too."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


def meet(folder: Path) -> None:
    """Wait until two processes left a file."""
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline, "no other process came"
        time.sleep(0.01)


@dataclass(frozen=True)
class Waits:
    """Work without an end."""

    folder: Path

    def __call__(self, rows: object) -> None:
        (self.folder / str(os.getpid())).touch()
        time.sleep(300)
