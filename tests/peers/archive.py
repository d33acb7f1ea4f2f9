"""The source archive of TRL 0.7.10, with its test suites: got by name from the package index, kept in scratch."""

import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.7.10"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"
"""Where it is kept; git ignores it."""


def archive() -> Path | None:
    """The archive, from scratch or from the package index; None where neither has it."""
    found = CACHE / f"trl-{VERSION}.tar.gz"
    if not found.is_file():
        command = [sys.executable, "-m", "pip", "download", f"trl=={VERSION}", "--no-deps", "--no-binary", ":all:"]
        options = ["--no-build-isolation", "--quiet", "--disable-pip-version-check", "--dest", str(CACHE)]
        subprocess.run([*command, *options], capture_output=True, check=False, timeout=120)
    return found if found.is_file() else None


def unpack_tests(source: Path, folder: Path) -> Path:
    """Write the archive's folder `tests` below `folder`, and give where it is."""
    root = f"trl-{VERSION}/tests"
    with tarfile.open(source) as package:
        members = [member for member in package.getmembers() if member.name.startswith(f"{root}/")]
        package.extractall(folder, members, filter="data")
    return folder / root
