"""Section `training.reward` of params.yaml; light to import, as graphs are read with it."""

from pydantic import Field

from stages.trainers.core.sections import OptimisationParams


class RewardTrainingParams(OptimisationParams):
    """Section `training.reward` of params.yaml."""

    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate after warm-up."""
    center_rewards_coefficient: float | None = Field(None, ge=0)
    """What scores cost that aren't centered around 0, as a multiple of the square of a pair's sum; null asks for
    nothing."""
