"""Section `training.dpo` of params.yaml; light to import, as graphs are read with it."""

from typing import Any

from pydantic import Field

from stages.trainers.core.fields import section_fields
from stages.trainers.core.loss_terms import PAIR_TERMS, PairTerms
from stages.trainers.core.sections import PreferenceParams

_TERMS: Any = section_fields(PreferenceParams, PairTerms, PAIR_TERMS)


class DPOTrainingParams(_TERMS):  # type: ignore[misc] # its fields are made above
    """Section `training.dpo` of params.yaml."""

    loss_type: str | list[str] = "sigmoid"
    """sigmoid, robust, hinge, ipo, exo_pair, nca_pair, apo_zero, apo_down, discopop, sigmoid_norm, sppo_hard, bco_pair,
    kto_pair, simpo, cpo, orpo, sft, or "module:function" for a loss of your own; or a list of them, added up by
    loss_weights."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs whose two labels are taken to be swapped."""
    ipo_averages: bool = True
    """Whether IPO's log-ratios are means over the tokens of a completion."""
    simpo_gamma: float = Field(0.5, ge=0)
    """Margin that SimPO wants between two rewards."""
    cpo_alpha: float = Field(1.0, ge=0)
    """Weight of the likelihood of the chosen completion in CPO."""
    discopop_tau: float = Field(0.05, gt=0)
    """Width of DiscoPOP's passage from its logistic to its exponential part."""
