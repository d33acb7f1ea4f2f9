"""The device that models run on: a setting of the machine, which no result's meaning depends on."""

import os
from typing import TypeVar

import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def default_device() -> torch.device:
    """The device that `PLUMBLINE_DEVICE` names ("cpu", "cuda:1"), else the machine's accelerator, else the CPU.

    Raises:
        ValueError: the variable names no device that this machine has.
    """
    name = os.environ.get("PLUMBLINE_DEVICE")
    if not name:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"PLUMBLINE_DEVICE: expected a device of this machine, found {name!r}: {error}") from None


def place(model: ModelT, device: torch.device) -> ModelT:
    """Move `model` to `device` and give it back."""
    nn.Module.to(model, device)
    return model
