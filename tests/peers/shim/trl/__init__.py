"""The names that TRL's test suites import, for the run of these suites: ours."""

from importlib.util import find_spec

from stages.trainers import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    DataCollatorForCompletionOnlyLM,
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
    DPOTrainer,
    IterativeSFTTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTTrainer,
    create_reference_model,
    set_seed,
)

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "DDPOConfig",
    "DDPOTrainer",
    "DPOTrainer",
    "DataCollatorForCompletionOnlyLM",
    "DefaultDDPOStableDiffusionPipeline",
    "IterativeSFTTrainer",
    "PPOConfig",
    "PPOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTTrainer",
    "create_reference_model",
    "is_bitsandbytes_available",
    "is_diffusers_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
    "set_seed",
]


def is_peft_available() -> bool:
    return find_spec("peft") is not None


def is_bitsandbytes_available() -> bool:
    return find_spec("bitsandbytes") is not None


def is_diffusers_available() -> bool:
    return find_spec("diffusers") is not None


def is_wandb_available() -> bool:
    return find_spec("wandb") is not None


def is_xpu_available() -> bool:
    return False
