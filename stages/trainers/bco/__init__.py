"""Binary Classifier Optimization (BCO), with the weights of prompts by underlying distribution matching (UDM)."""

from stages.trainers.bco.trainer import TRAINER, BCOConfig, BCOTrainer

__all__ = ["TRAINER", "BCOConfig", "BCOTrainer"]
