"""Proximal Policy Optimization (PPO): a policy, a value head, and steps on answers that were scored."""

from stages.trainers.ppo.config import PPOConfig
from stages.trainers.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
