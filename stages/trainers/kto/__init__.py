"""Kahneman-Tversky Optimization (KTO), with mismatched rows for its estimate of the KL divergence."""

from stages.trainers.kto.trainer import TRAINER, KTOConfig, KTOTrainer

__all__ = ["TRAINER", "KTOConfig", "KTOTrainer"]
