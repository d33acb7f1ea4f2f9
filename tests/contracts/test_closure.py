"""The import closure: what a stage runs, and nothing of the methods beside it."""

import pytest

from stages.contracts.closure import code_files


def names(*modules):
    return {path.as_posix() for path in code_files(modules)}


def test_follows_imports_also_inside_functions():
    found = names("stages.density_ratio")

    assert {"stages/density_ratio.py", "stages/contracts/stage.py", "stages/udm/classifier.py"} <= found
    assert not any(path.endswith("__init__.py") for path in found)


def test_training_does_not_run_a_method_that_is_not_named():
    assert "stages/losses/bco.py" not in names("stages.training")
    assert "stages/losses/bco.py" in names("stages.training", "stages.trainers.bco.trainer")


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"stages\.nothing"):
        code_files(["stages.nothing"])
