"""Training of reward models on pairs."""

from stages.trainers.reward.batches import RewardDataCollatorWithPadding
from stages.trainers.reward.config import RewardConfig
from stages.trainers.reward.trainer import TRAINER, RewardTrainer

__all__ = ["TRAINER", "RewardConfig", "RewardDataCollatorWithPadding", "RewardTrainer"]
