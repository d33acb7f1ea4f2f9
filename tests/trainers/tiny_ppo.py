"""Policies, settings and rollouts of PPO that a test trains on in a moment."""

from typing import Any

import torch

from stages.models.value_head import AutoModelForCausalLMWithValueHead
from stages.trainers.ppo.config import PPOConfig
from stages.trainers.ppo.trainer import PPOTrainer
from tests.trainers.tiny import tiny_llama, tiny_tokenizer


def ppo_config(**arguments: Any) -> PPOConfig:
    """Four responses a step, two at a time, on the CPU."""
    defaults: dict[str, Any] = {
        "batch_size": 4,
        "mini_batch_size": 2,
        "ppo_epochs": 2,
        "learning_rate": 1e-2,
        "accelerator_kwargs": {"cpu": True},
    }
    return PPOConfig(**{**defaults, **arguments})


def tiny_policy(*, seed: int = 0, model: Any = None, **arguments: Any) -> AutoModelForCausalLMWithValueHead:
    """`tiny_llama` with a value head, the same in every run."""
    model = tiny_llama(seed=seed) if model is None else model
    torch.manual_seed(seed)
    return AutoModelForCausalLMWithValueHead.from_pretrained(model, **arguments)


def tiny_trainer(*, model: Any = None, ref_model: Any = None, tokenizer: Any = None, **arguments: Any) -> PPOTrainer:
    """A trainer of `tiny_policy`; the arguments are those of its config."""
    return PPOTrainer(ppo_config(**arguments), model or tiny_policy(), ref_model, tokenizer or tiny_tokenizer())


def rollouts(number: int = 4, *, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Arguments of `step`: queries and responses of various lengths, and scores."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(6, 32, (length,), generator=generator)

    return {
        "queries": [ids(3 + index % 3) for index in range(number)],
        "responses": [ids(2 + (index * 2) % 5) for index in range(number)],
        "scores": list(torch.randn(number, generator=generator)),
    }
