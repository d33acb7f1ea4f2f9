"""What losses over rows ask of the tensors that they are given."""

from collections.abc import Mapping

import torch
from torch import Tensor


def check_rows(rows: Mapping[str, Tensor]) -> None:
    """Compare the shapes of tensors that hold one entry per row; shapes that differ could be broadcast otherwise.

    Args:
        rows: the tensors, by the name that the caller knows them by.

    Raises:
        ValueError: the tensors differ in shape, or have another number of dimensions than one.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in rows.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one entry per row in each tensor, found shapes {shapes}")


def check_labels(labels: Tensor) -> None:
    """Refuse labels that aren't boolean, whose inversion would be another number and no label.

    Raises:
        ValueError: they are something else.
    """
    if labels.dtype != torch.bool:
        raise ValueError(f"expected boolean labels, found {labels.dtype}; compare them with what desired means")


def check_losses(losses: object, *, counts: tuple[int, ...], name: str) -> None:
    """Look at what a loss of anyone's own gave.

    Args:
        losses: what it gave.
        counts: the numbers of losses that are possible.
        name: how the user knows the function.

    Raises:
        ValueError: that is no tensor with one finite, differentiable loss per row.
    """
    wanted = f"expected a tensor of shape ({' or '.join(map(str, counts))},) from {name}"
    if not isinstance(losses, Tensor):
        raise ValueError(f"{wanted}, found {type(losses).__name__}; return the losses of the rows alone")
    if losses.ndim != 1 or len(losses) not in counts:
        raise ValueError(f"{wanted}, found shape {tuple(losses.shape)}; return one loss per row, without their mean")
    if not losses.requires_grad:
        raise ValueError(f"{wanted} that is differentiable in the policy's log-probabilities, found a constant")
    if not losses.isfinite().all():
        raise ValueError(f"{wanted} with finite entries, found {losses.tolist()}")
