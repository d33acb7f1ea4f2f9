"""Iterative supervised fine-tuning: steps on rows that are made between them, such as one's own best answers."""

from stages.trainers.iterative_sft.trainer import TRAINER, IterativeSFTTrainer

__all__ = ["TRAINER", "IterativeSFTTrainer"]
