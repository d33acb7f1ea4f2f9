"""The table of methods: what each entry names is there, and a name that is none is an error with the nearest."""

from types import SimpleNamespace

import pytest

from stages import trainers
from stages.trainers import METHODS, method_of
from stages.trainers.bco.section import BCOTrainingParams
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.job import adapter_config, config_arguments
from stages.trainers.core.sections import LoraParams, TrainingSection
from stages.training_rows import NEEDED


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_names_a_trainer_a_section_and_a_kind_of_rows(name):
    method = method_of(name)

    assert method.trainer_class() is getattr(trainers, method.trainer_class().__name__)
    assert issubclass(method.section(), TrainingSection)
    assert method.section()().start_from == ("base_diffusion" if name == "ddpo" else "base")
    assert method.rows in NEEDED
    assert list(method.modules) == [method.trainer, method.params]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "prompts" not in method.rows])
def test_methods_of_the_stage_training_say_how_they_are_made_of_a_job(name):
    found = method_of(name).trainer_class()

    assert found.of_stage.__func__ is not FeedbackTrainer.of_stage.__func__


def test_a_trainer_that_has_a_stage_of_its_own_says_so():
    class Own(FeedbackTrainer):
        pass

    with pytest.raises(ValueError, match="Own is not trained by the stage training"):
        Own.of_stage(SimpleNamespace(params=BCOTrainingParams()))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bcoo", r"did you mean bco\?"),
        ("iterativ_sft", r"did you mean iterative_sft\?"),
        ("xyz", "add it to METHODS in stages/trainers/__init__.py"),
    ],
)
def test_a_name_that_is_no_method_is_an_error_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"expected a method, one of bco, .*, found '{name}'; {hint}"):
        method_of(name)


def test_a_name_that_is_no_trainer_is_an_error():
    with pytest.raises(AttributeError, match="stages.trainers has no BCOTrainr; it has .*BCOTrainer"):
        trainers.BCOTrainr  # noqa: B018 - asking is what fails


def test_sections_are_light_to_import():
    found = {name: method_of(name).section().__module__ for name in METHODS}

    assert set(found.values()) == {f"stages.trainers.{name}.section" for name in METHODS}


def test_a_section_becomes_arguments_of_the_config(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")
    params = BCOTrainingParams(learning_rate=1e-3, save_steps=0, gradient_checkpointing=True, start_from="sft")

    found = config_arguments(params, without={"beta"})

    assert (found["learning_rate"], found["save_strategy"], found["use_cpu"]) == (1e-3, "no", True)
    assert found["activation_checkpointing"] is found["gradient_checkpointing"] is True
    assert not {"method", "start_from", "lora", "dtype", "report_to", "beta"} & set(found)
    assert config_arguments(BCOTrainingParams(save_steps=7))["save_steps"] == 7


def test_an_adapter_is_what_its_section_says():
    assert adapter_config(None, task_type="CAUSAL_LM") is None

    found = adapter_config(LoraParams(r=2, alpha=6, dropout=0.5), task_type="SEQ_CLS")

    assert (found.r, found.lora_alpha, found.lora_dropout, found.task_type) == (2, 6, 0.5, "SEQ_CLS")
