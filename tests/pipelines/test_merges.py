"""Two branches that both ran, merged by real git."""

import shutil
import subprocess

import pytest

from pipelines.graph import recorded_stages
from tests.workspace import ROOT

LOCK = "schema: '2.0'\nstages:\n  training@bco:\n    cmd: train\n    outs:\n    - path: models/bco\n      md5: {}\n"


def git(folder, *words, status=0):
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def branches(tmp_path):
    """A repository on one of two branches that both have another dvc.lock."""
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    git(tmp_path, "config", "user.email", "tests@example.org")
    git(tmp_path, "config", "user.name", "Tests")
    for branch, value in [("main", "first"), ("other", "theirs"), ("ours", "ours")]:
        if branch != "main":
            git(tmp_path, "switch", "--quiet", "--create", branch, "main")
        (tmp_path / "dvc.lock").write_text(LOCK.format(value))
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message", value)
    return tmp_path


def test_the_driver_of_the_setup_leaves_no_conflict(branches):
    shutil.copy(ROOT / "Makefile", branches)
    (branches / "requirements.lock").touch()
    (branches / "pyproject.toml").touch()
    (branches / ".venv").mkdir()
    (branches / ".venv/.made").touch()
    subprocess.run(["make", "--silent", "setup"], cwd=branches, check=True)

    git(branches, "merge", "--quiet", "--no-edit", "other")

    assert recorded_stages(branches / "dvc.lock")["training@bco"]["outs"][0]["md5"] == "ours"


def test_without_it_the_conflict_is_named_and_the_remedy_works(branches, monkeypatch):
    git(branches, "merge", "--quiet", "other", status=1)
    lock = branches / "dvc.lock"

    with pytest.raises(ValueError, match=r"the conflict of a merge; `git checkout --ours \S+ && git add") as caught:
        recorded_stages(lock)

    remedy = str(caught.value).split("`")[1].replace(str(lock), "dvc.lock")
    subprocess.run(["bash", "-c", remedy], cwd=branches, check=True, capture_output=True)
    assert recorded_stages(lock)["training@bco"]["outs"][0]["md5"] == "ours"
