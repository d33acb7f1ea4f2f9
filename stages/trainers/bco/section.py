"""Section `training.bco` of params.yaml; light to import, as graphs are read with it."""

from typing import Literal

from pydantic import Field

from stages.trainers.core.sections import PreferenceParams


class BCOTrainingParams(PreferenceParams):
    """Section `training.bco` of params.yaml."""

    reward_shift: Literal["pooled", "balanced"] = "balanced"
    """Mean that rewards are compared with: of all rows, or of the means of desired and of undesired ones, which classes
    of different sizes don't pull to the larger one's side."""
    reward_shift_decay: float = Field(1.0, gt=0, le=1)
    """What older rewards count in that mean after each micro-batch, relative to before; 1 forgets nothing."""
