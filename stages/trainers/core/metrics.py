"""Means over rows, gathered on the device step by step and reduced over processes when they are read."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

_MARGIN = ("rewards/chosen", "rewards/rejected", "rewards/margins")


class Share(NamedTuple):
    """Part of a mean: a sum and what it is divided by."""

    total: Tensor
    """Shape ()."""
    number: Tensor
    """Shape ()."""


def share_of(values: Tensor, where: Tensor | None = None) -> Share:
    """The part that some rows have in a mean.

    Args:
        values: one value per row; detached here. Shape (n,).
        where: rows that count. Boolean, shape (n,). None counts all.
    """
    values = values.detach()
    if where is None:
        return Share(values.sum(), torch.tensor(float(values.numel()), device=values.device))
    return Share(values.masked_fill(~where, 0.0).sum(), where.sum())


def by_class(name: str, values: Tensor, labels: Tensor) -> dict[str, Share]:
    """`name/chosen` over the desired rows and `name/rejected` over the others."""
    return {f"{name}/chosen": share_of(values, labels), f"{name}/rejected": share_of(values, ~labels)}


class MetricSums:
    """Sums and counts by name. Nothing waits for the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, shares: Mapping[str, Share]) -> None:
        """Add what one batch contributes."""
        for name, share in shares.items():
            total = share.total.detach()
            kind = _kind_on(total.device)
            pair = torch.stack([total.to(kind), share.number.to(total.device, kind)])
            known = self._sums.get(name)
            self._sums[name] = pair if known is None else known.to(pair) + pair

    def state(self, accelerator: Accelerator) -> dict[str, list[list[float]]]:
        """Sum and count in each process as plain numbers, for a checkpoint. All processes call it together."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        tables = accelerator.gather(self._table(names, accelerator)[None])  # (processes, names, 2)
        return {name: tables[:, place].tolist() for place, name in enumerate(names)}

    def restore(self, state: Mapping[str, list[list[float]]], accelerator: Accelerator) -> None:
        """Take up what `state` gave; fewer processes than then share out all of it, more have less than all."""
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        self._sums = {
            name: torch.tensor(pairs[mine] or [[0.0, 0.0]], dtype=torch.float64).sum(0) for name, pairs in state.items()
        }

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each name over what was added since the last call, by all processes; empty ones are left out.

        All processes call it together, having added the same names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = self._table(names, accelerator)
        self._sums = {}
        rows = accelerator.reduce(table, reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(names, rows, strict=True) if count}
        chosen, rejected, margins = _MARGIN
        if chosen in means and rejected in means:
            means[margins] = means[chosen] - means[rejected]
        return means

    def _table(self, names: list[str], accelerator: Accelerator) -> Tensor:
        device = accelerator.device
        return torch.stack([self._sums[name].to(device, _kind_on(device)) for name in names])


def _kind_on(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
