"""Trainers with their documented constructors: `from stages.trainers import BCOTrainer, BCOConfig, set_seed`."""

from importlib import import_module
from typing import Any

_MODULES = {
    "BCOConfig": "stages.trainers.bco",
    "BCOTrainer": "stages.trainers.bco",
    "DDPOConfig": "stages.trainers.ddpo_config",
    "DDPOTrainer": "stages.trainers.ddpo",
    "DefaultDDPOStableDiffusionPipeline": "stages.models.diffusion",
    "set_seed": "stages.trainers.seeding",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Load the module that defines `name` on its first use: no trainer pays for another's imports."""
    if name not in _MODULES:
        raise AttributeError(f"stages.trainers has no {name}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)
