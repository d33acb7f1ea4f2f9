"""Scripts of the kind that TRL's examples show, run with one import changed."""

import os
import subprocess
import sys

import pytest

from tests.peers.stand_ins import write_hub
from tests.peers.suites import ROOT

SCRIPTS = sorted((ROOT / "tests" / "peers" / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "cache"
    write_hub(folder, [script.read_text() for script in SCRIPTS], [])
    return folder


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_with_one_import_changed(tmp_path, hub, script):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "out").rglob("*.safetensors"))
