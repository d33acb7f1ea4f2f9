"""Section `training.sft` of params.yaml; light to import, as graphs are read with it."""

from typing import Literal

from pydantic import Field

from stages.trainers.core.sections import OptimisationParams


class SFTTrainingParams(OptimisationParams):
    """Section `training.sft` of params.yaml."""

    learning_rate: float = Field(2e-5, gt=0)
    """Learning rate after warm-up."""
    completion_only_loss: bool = True
    """Whether completions alone are learned, and prompts not."""
    packing: Literal["none", "apart", "wrapped"] = "none"
    """Whether several demonstrations stand in one row: each whole and unseen by the others ("apart"), or one behind
    the other and cut where a row ends ("wrapped")."""
    seq_length: int = Field(1024, gt=0)
    """Tokens of a packed row."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """Strength of noise on the embeddings while training; null adds none."""
    merge_lora: bool = True
    """Whether a trained adapter becomes part of the weights, without which other methods can't start from them."""
