"""Trainers with their documented constructors: `from stages.trainers import BCOTrainer, BCOConfig, set_seed`.

And METHODS, the methods that the graph knows. One of your own is an entry there, beside its entry in dvc.yaml and its
section in params.yaml; see CONTRIBUTING.
"""

from difflib import get_close_matches
from importlib import import_module
from typing import Any

from stages.trainers.core.method import Method

METHODS = {
    "bco": Method(
        "stages.trainers.bco.trainer:BCOTrainer",
        "stages.trainers.bco.section:BCOTrainingParams",
        "labelled",
        in_processes=True,
    ),
    "kto": Method(
        "stages.trainers.kto.trainer:KTOTrainer",
        "stages.trainers.kto.section:KTOTrainingParams",
        "labelled",
        in_processes=True,
    ),
    "dpo": Method(
        "stages.trainers.dpo.trainer:DPOTrainer",
        "stages.trainers.dpo.section:DPOTrainingParams",
        "pairs",
        in_processes=True,
    ),
    "reward": Method(
        "stages.trainers.reward.trainer:RewardTrainer", "stages.trainers.reward.section:RewardTrainingParams", "pairs"
    ),
    "sft": Method(
        "stages.trainers.sft.trainer:SFTTrainer", "stages.trainers.sft.section:SFTTrainingParams", "demonstrations"
    ),
    "iterative_sft": Method(
        "stages.trainers.iterative_sft.trainer:IterativeSFTTrainer",
        "stages.trainers.iterative_sft.section:IterativeSFTTrainingParams",
        "prompts",
    ),
    "ppo": Method("stages.trainers.ppo.trainer:PPOTrainer", "stages.trainers.ppo.section:PPOTrainingParams", "prompts"),
    "ddpo": Method(
        "stages.trainers.ddpo.trainer:DDPOTrainer",
        "stages.trainers.ddpo.section:DiffusionTrainingParams",
        "image_prompts",
    ),
}


_MODULES = {
    "AutoModelForCausalLMWithValueHead": "stages.models.value_head",
    "AutoModelForSeq2SeqLMWithValueHead": "stages.models.value_head",
    "BCOConfig": "stages.trainers.bco.trainer",
    "BCOTrainer": "stages.trainers.bco.trainer",
    "ConstantLengthDataset": "stages.rows.packing",
    "create_reference_model": "stages.models.shared_layers",
    "DataCollatorForCompletionOnlyLM": "stages.trainers.sft.completion_only",
    "DDPOConfig": "stages.trainers.ddpo.config",
    "DDPOTrainer": "stages.trainers.ddpo.trainer",
    "DefaultDDPOStableDiffusionPipeline": "stages.models.diffusion",
    "DPOConfig": "stages.trainers.dpo.trainer",
    "DPOTrainer": "stages.trainers.dpo.trainer",
    "IterativeSFTTrainer": "stages.trainers.iterative_sft.trainer",
    "KTOConfig": "stages.trainers.kto.trainer",
    "KTOTrainer": "stages.trainers.kto.trainer",
    "PPOConfig": "stages.trainers.ppo.config",
    "PPOTrainer": "stages.trainers.ppo.trainer",
    "RewardConfig": "stages.trainers.reward.config",
    "RewardDataCollatorWithPadding": "stages.trainers.reward.batches",
    "RewardTrainer": "stages.trainers.reward.trainer",
    "set_seed": "stages.trainers.core.seeding",
    "SFTConfig": "stages.trainers.sft.trainer",
    "SFTTrainer": "stages.trainers.sft.trainer",
}
__all__ = ["METHODS", "method_of"]
__all__ += list(_MODULES)


def __getattr__(name: str) -> Any:
    """Load the module that defines `name` on its first use: no trainer pays for another's imports."""
    if name not in _MODULES:
        raise AttributeError(f"stages.trainers has no {name}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else "add it to METHODS in stages/trainers/__init__.py"
        raise ValueError(f"expected a method, one of {', '.join(METHODS)}, found {name!r}; {hint}")
    return METHODS[name]
