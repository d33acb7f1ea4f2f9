"""Arguments of DDPO as documented, and what of them is refused before anything is loaded."""

import importlib.util
import inspect
import json

import pytest

from stages.trainers import DDPOConfig, DDPOTrainer
from tests.material import SHARED, needs_shared


def ledger(name):
    return json.loads((SHARED / "seeds" / "signatures.json").read_text())[name]


@needs_shared
def test_arguments_have_the_documented_names_order_and_defaults():
    found = inspect.signature(DDPOConfig).parameters

    for (name, default), argument in zip(ledger("DDPOConfig"), found.values(), strict=True):
        assert argument.name == name
        # `exp_name` is the name of the program: the documented one is that of the program that built the pages.
        assert default == "<factory>" or name == "exp_name" or repr(argument.default) == default


@needs_shared
@pytest.mark.parametrize("name", ["DDPOTrainer", "DDPOTrainer.calculate_loss", "DDPOTrainer.step", "DDPOTrainer.train"])
def test_the_trainer_takes_the_documented_arguments(name):
    function = getattr(DDPOTrainer, name.partition(".")[2], DDPOTrainer)

    found = [argument for argument in inspect.signature(function).parameters.values() if argument.name != "self"]

    assert [argument.name for argument in found] == [argument for argument, _ in ledger(name)]
    defaults = ["None" if argument.default is None else None for argument in found]
    assert defaults == [default for _, default in ledger(name)]


@needs_shared
def test_the_model_card_takes_the_documented_arguments():
    found = list(inspect.signature(DDPOTrainer.create_model_card).parameters.values())[1:]

    assert [[argument.name, repr(argument.default)] for argument in found][1] == ledger(
        "DDPOTrainer.create_model_card"
    )[1]
    assert found[0].name == "path"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_epochs": 0}, "expected num_epochs above 0, found 0"),
        ({"train_learning_rate": -1.0}, "expected train_learning_rate above 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision as one of no, fp16, bf16, found 'fp8'"),
        ({"sample_eta": 0.0}, "expected sample_eta above 0 and up to 1, found 0.0"),
        ({"train_timestep_fraction": 1.5}, "expected train_timestep_fraction above 0 and up to 1"),
        ({"seed": -1}, "expected seed of at least 0 and below 4294967296, found -1"),
        ({"sample_batch_size": 3, "train_batch_size": 2}, "sample_batch_size as a multiple of train_batch_size"),
        ({"sample_batch_size": 1, "train_batch_size": 2}, "sample_batch_size as a multiple of train_batch_size"),
        (
            {"sample_batch_size": 2, "train_batch_size": 2, "train_gradient_accumulation_steps": 3},
            "found 4 and 6, so that a last step would be smaller than others",
        ),
    ],
)
def test_refuses_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        DDPOConfig(**given)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bit_adam_is_refused_where_its_package_is_missing():
    with pytest.raises(ValueError, match="train_use_8bit_adam=True: expected the package bitsandbytes, found none"):
        DDPOConfig(train_use_8bit_adam=True)


def test_gives_its_arguments_by_name():
    config = DDPOConfig(seed=3, tracker_kwargs={"wandb": {"entity": "me"}})

    assert DDPOConfig(**config.to_dict()) == config
