"""Section `training.kto` of params.yaml; light to import, as graphs are read with it."""

from pydantic import Field

from stages.trainers.core.sections import PreferenceParams


class KTOTrainingParams(PreferenceParams):
    """Section `training.kto` of params.yaml."""

    loss_type: str = "kto"
    """kto, apo_zero_unpaired, or "module:function" for a loss of your own."""
    desirable_weight: float = Field(1.0, ge=0)
    """What the losses of desired rows are multiplied by."""
    undesirable_weight: float = Field(1.0, ge=0)
    """What those of undesired rows are multiplied by."""
