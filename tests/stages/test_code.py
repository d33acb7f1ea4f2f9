"""Stage `code`: what each stage and method runs, one file each, and what an edit changes of them."""

import shutil

import pytest

from stages import code
from stages.code import code_listings, run
from stages.contracts import closure
from stages.contracts.closure import ROOT
from stages.contracts.stage import parse_listing
from stages.trainers import METHODS

SOURCE = ROOT / "stages"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """Digests are taken once for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def listings():
    return {name: parse_listing(text) for name, text in code_listings(SOURCE).items()}


def changed(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_file_is_written_per_stage_and_per_method_of_the_stage_training(tmp_path, listings):
    run(source=SOURCE, code=tmp_path / "out" / "code")

    written = {file.name: parse_listing(file.read_text()) for file in (tmp_path / "out" / "code").iterdir()}
    stages = {file.stem for file in SOURCE.glob("*.py")} - {"__init__", "code", "training"}
    assert written == listings
    assert written.keys() == stages | {f"{name}_training" for name in METHODS}
    assert all("/" in path or ":" in path for listing in written.values() for path in listing)


def test_a_method_s_loss_is_in_its_own_training_alone(listings):
    holders = {name for name, listing in listings.items() if "stages/losses/bco.py" in listing}

    assert holders == {"bco_training"}


def test_a_value_head_is_in_the_training_that_has_one(listings):
    assert "stages/models/value_head.py" in listings["ppo_training"]
    assert "stages/models/value_head.py" not in listings["bco_training"]


def test_all_trainings_of_the_stage_training_run_it(listings):
    assert {name for name, listing in listings.items() if "stages/training.py" in listing} == {
        f"{name}_training" for name in ("bco", "kto", "dpo", "sft", "reward")
    }


@pytest.mark.parametrize("field", ["trainer", "params"])
def test_an_entry_that_names_another_class_changes_the_file_of_that_method_alone(monkeypatch, listings, field):
    module, _, _ = getattr(METHODS["kto"], field).partition(":")
    other = METHODS["kto"].__class__(**{**vars(METHODS["kto"]), field: f"{module}:Another"})
    monkeypatch.setitem(METHODS, "kto", other)

    found = {name: parse_listing(text) for name, text in code_listings(SOURCE).items()}

    assert changed(listings, found) == {"kto_training"}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The sources, in a folder where a test may edit them."""
    for package in closure.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    return tmp_path / "stages"


def edited(copied, name, old, new):
    file = copied / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return {name: parse_listing(text) for name, text in code.code_listings(copied).items()}


def test_a_comment_in_a_stage_or_in_what_all_share_changes_no_file(copied, listings):
    assert changed(listings, edited(copied, "gate.py", "import", "# why\nimport")) == set()
    assert (
        changed(listings, edited(copied, "contracts/stage.py", "\n\nclass Section", "  # what\n\n\nclass Section"))
        == set()
    )


def test_an_edit_changes_the_files_of_what_runs_it_and_no_other(copied, listings):
    found = edited(copied, "losses/bco.py", "beta * (policy_logps", "2 * beta * (policy_logps")

    assert changed(listings, found) == {"bco_training"}


def test_an_edit_of_what_all_share_changes_all(copied, listings):
    found = edited(copied, "contracts/stage.py", "EXIT_GATE = 10", "EXIT_GATE = 11")

    assert changed(listings, found) == set(listings)


def test_a_source_that_is_no_python_is_named(copied):
    with pytest.raises(ValueError, match=r"losses/bco\.py: expected Python, found .*'\(' was never closed"):
        edited(copied, "losses/bco.py", "def bco_loss(", "def bco_loss((")
