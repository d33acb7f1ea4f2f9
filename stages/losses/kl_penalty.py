"""How PPO can measure the distance from the reference; light to import, for a configuration names it."""

from typing import Literal

KLPenalty = Literal["kl", "abs", "mse", "full"]
