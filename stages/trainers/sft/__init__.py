"""Supervised fine-tuning (SFT): texts and conversations, packed or not, whole or their answers alone."""

from stages.rows.packing import ConstantLengthDataset
from stages.trainers.sft.completion_only import DataCollatorForCompletionOnlyLM
from stages.trainers.sft.trainer import TRAINER, SFTConfig, SFTTrainer

__all__ = ["TRAINER", "ConstantLengthDataset", "DataCollatorForCompletionOnlyLM", "SFTConfig", "SFTTrainer"]
