"""What all training stages look at before they load anything: whether their start is a base model."""

from importlib import import_module
from inspect import signature

import pytest

from stages.models.pointer import ADAPTER_FILE

STAGES = {
    "training": "BCOTrainingParams",
    "sft_training": "SFTTrainingParams",
    "reward_training": "RewardTrainingParams",
    "ppo_training": "PPOTrainingParams",
    "iterative_sft_training": "IterativeSFTTrainingParams",
}


@pytest.mark.parametrize("name", STAGES)
def test_an_adapter_that_was_not_merged_is_refused_as_a_start_before_anything_is_read(tmp_path, name):
    stage = import_module(f"stages.{name}")
    params = getattr(stage, STAGES[name])()
    paths = dict.fromkeys(signature(stage.run).parameters, tmp_path / "missing")
    start = tmp_path / "sft"
    start.mkdir()
    (start / ADAPTER_FILE).write_text("{}")
    arguments = {**paths, "base_model": start, "params": params, **({"method": "bco"} if "method" in paths else {})}

    with pytest.raises(ValueError, match=r"expected reference\.json, .* train it with merge_lora: true"):
        stage.run(**arguments)
