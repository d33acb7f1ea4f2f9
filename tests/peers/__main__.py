"""Run TRL's own test suites on our trainers and print what became of them: `python -m tests.peers [--write PAGE]`."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.peers.archive import CACHE, archive
from tests.peers.suites import run_suites
from tests.peers.table import page, wrong


def main() -> None:
    """Print the table, and write it if asked to; ends with an error if a line is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page to write")
    arguments = parser.parse_args()
    source = archive()
    if source is None:
        sys.exit(f"expected TRL's source archive in {CACHE} or in the package index, found none")
    with TemporaryDirectory() as folder:
        outcomes = run_suites(source, Path(folder))
    text = page(outcomes)
    print(text)
    faults = wrong(outcomes)
    if faults:
        sys.exit("\n".join(faults))
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
