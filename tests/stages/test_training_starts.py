"""What all training stages look at before they load anything: whether their start is a base model."""

from importlib import import_module
from inspect import signature

import pytest

from stages.models.pointer import ADAPTER_FILE
from stages.trainers import METHODS, method_of


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"ddpo"}))
def test_an_adapter_that_was_not_merged_is_refused_as_a_start_before_anything_is_read(tmp_path, name):
    own_stage = f"{name}_training" if method_of(name).rows == "prompts" else "training"
    run = import_module(f"stages.{own_stage}").run
    paths = dict.fromkeys(signature(run).parameters, tmp_path / "missing")
    start = tmp_path / "sft"
    start.mkdir()
    (start / ADAPTER_FILE).write_text("{}")
    arguments = {**paths, "base_model": start, "params": method_of(name).section()()}

    with pytest.raises(ValueError, match=r"expected reference\.json, .* train it with merge_lora: true"):
        run(**{**arguments, **({"method": name} if "method" in paths else {})})
