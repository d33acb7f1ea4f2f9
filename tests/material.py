"""Where tests find real material that is no part of the project: feedback logs, a model, numbers to agree with."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Folder beside the checkout; absent on most machines."""

needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="real logs and TRL's numbers are not beside this checkout (../shared)"
)
