"""Direct Preference Optimization (DPO) and the losses on pairs that share its trainer."""

from stages.trainers.dpo.trainer import TRAINER, DPOConfig, DPOTrainer

__all__ = ["TRAINER", "DPOConfig", "DPOTrainer"]
