"""Trainers with their documented constructors: `from stages.trainers import BCOTrainer, BCOConfig, set_seed`."""

from importlib import import_module
from typing import Any

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
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Load the module that defines `name` on its first use: no trainer pays for another's imports."""
    if name not in _MODULES:
        raise AttributeError(f"stages.trainers has no {name}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)
