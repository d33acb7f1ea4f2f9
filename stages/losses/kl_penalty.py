"""Names of the ways to measure the distance from the reference; light to import, for configurations name them."""

from typing import Literal

KLPenalty = Literal["kl", "abs", "mse", "full"]
"""Those of PPO."""
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
"""Those of losses over pairs; see `stages.losses.divergences`."""
