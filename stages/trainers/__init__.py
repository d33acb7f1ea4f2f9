"""Trainers with their documented constructors: `from stages.trainers import BCOTrainer, BCOConfig, set_seed`."""

from importlib import import_module
from typing import Any

_MODULES = {
    "AutoModelForCausalLMWithValueHead": "stages.models.value_head",
    "AutoModelForSeq2SeqLMWithValueHead": "stages.models.value_head",
    "BCOConfig": "stages.trainers.bco",
    "BCOTrainer": "stages.trainers.bco",
    "DPOConfig": "stages.trainers.dpo",
    "DPOTrainer": "stages.trainers.dpo",
    "KTOConfig": "stages.trainers.kto",
    "KTOTrainer": "stages.trainers.kto",
    "RewardConfig": "stages.trainers.reward",
    "RewardDataCollatorWithPadding": "stages.trainers.reward",
    "RewardTrainer": "stages.trainers.reward",
    "PPOConfig": "stages.trainers.ppo",
    "PPOTrainer": "stages.trainers.ppo",
    "create_reference_model": "stages.models.shared_layers",
    "ConstantLengthDataset": "stages.trainers.sft",
    "DataCollatorForCompletionOnlyLM": "stages.trainers.sft",
    "IterativeSFTTrainer": "stages.trainers.iterative_sft",
    "SFTConfig": "stages.trainers.sft",
    "SFTTrainer": "stages.trainers.sft",
    "set_seed": "stages.trainers.seeding",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Load the module that defines `name` on its first use: no trainer pays for another's imports."""
    if name not in _MODULES:
        raise AttributeError(f"stages.trainers has no {name}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)
