"""What of TRL's module the suites import."""

from typing import Any

from stages.trainers import ConstantLengthDataset, DataCollatorForCompletionOnlyLM

__all__ = ["ConstantLengthDataset", "DataCollatorForCompletionOnlyLM", "compute_accuracy"]


def compute_accuracy(predictions: Any) -> dict[str, float]:
    """A function inside TRL's reward trainer, which has no counterpart: ours measures accuracy by itself."""
    raise NotImplementedError("compute_accuracy is TRL's own; RewardTrainer logs eval_accuracy")
