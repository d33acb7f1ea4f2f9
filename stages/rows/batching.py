"""Batches in which a row's place and its neighbours can't change its result.

Padding to the longest row of a batch makes a row's floats depend on the rows beside it, because matrix products of
another shape add in another order. Rows are therefore padded to a width that follows from their own length alone,
and a batch always holds the same number of rows.

Collators of training pad to the longest row of a batch, by the same function.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad


def bucket_length(length: int) -> int:
    """Width that a row of `length` tokens is padded to.

    Multiples of 16 up to 128, then four widths per doubling: less than a quarter of a row is padding, and few
    shapes occur.

    Raises:
        ValueError: the length is negative.
    """
    if length < 0:
        raise ValueError(f"expected a length of at least 0, found {length}")
    step = 16 if length <= 128 else 2 ** ((length - 1).bit_length() - 3)
    return max(step, -(-length // step) * step)


class FixedBatch(NamedTuple):
    """Rows of one padded width."""

    rows: list[int]
    """Their places, ascending."""
    filled: list[int]
    """The same places, the last one repeated up to the batch size: results of the repetitions are to be dropped."""
    width: int
    """What they are padded to."""


def fixed_batches(lengths: Sequence[int], *, batch_size: int) -> Iterator[FixedBatch]:
    """Group rows of one padded width each, the widest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch, once it is filled up: every batch of a width has one shape.

    Yields:
        Batches of indices into `lengths`.

    Raises:
        ValueError: the batch size is below one.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, found {batch_size}")
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        buckets.setdefault(bucket_length(length), []).append(index)
    for width in sorted(buckets, reverse=True):
        for start in range(0, len(buckets[width]), batch_size):
            rows = buckets[width][start : start + batch_size]
            yield FixedBatch(rows, [*rows, *[rows[-1]] * (batch_size - len(rows))], width)


class Padded(NamedTuple):
    """Rows as one tensor, and what of it is theirs."""

    ids: Tensor
    """int64, shape (n, t)."""
    mask: Tensor
    """1 for what a row holds, 0 for padding. int64, shape (n, t)."""


def padded(
    rows: Sequence[Sequence[int] | Tensor], *, pad_id: int, width: int | None = None, on_left: bool = False
) -> Padded:
    """The rows padded to one width.

    Args:
        rows: token ids, labels or mask values of each row.
        pad_id: what fills short rows.
        width: columns of the result. None takes the longest row's length.
        on_left: whether rows end at the right edge, from where a decoder goes on, and not begin at the left one.

    Returns:
        Tensors on the CPU, of shape (n, width).

    Raises:
        ValueError: a row is longer than `width`.
    """
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max()) if width is None else width
    if lengths.max() > width:
        raise ValueError(f"expected rows of at most {width} tokens, found one of {lengths.max()}")
    places = np.arange(width)
    mask = places >= width - lengths[:, None] if on_left else places < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([_as_array(row) for row in rows])
    return Padded(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))


def said_mask(
    mask: Tensor, prompt_lengths: Sequence[int], spans: Sequence[Sequence[int] | None] | None = None
) -> Tensor:
    """1 for tokens of a completion that the assistant said, in rows padded on the right.

    Args:
        mask: 1 for what a row holds. Shape (n, t).
        prompt_lengths: tokens of each row in front of its completion.
        spans: of each row, ranges of tokens of its completion as start, end, start, end; None: all of it.

    Returns:
        Of the type and shape of `mask`.
    """
    places = torch.arange(mask.shape[1])
    found = mask * (places >= torch.tensor(prompt_lengths)[:, None])
    for index, row in enumerate(spans or ()):
        if row is not None:
            behind = places - prompt_lengths[index]
            ranges = zip(row[::2], row[1::2], strict=True)
            is_said = sum(((begin <= behind) & (behind < end) for begin, end in ranges), torch.zeros_like(behind))
            found[index] *= is_said.bool()
    return found


def _as_array(row: Sequence[int] | Tensor) -> NDArray[np.int64]:
    return np.asarray(row.cpu() if isinstance(row, Tensor) else row, dtype=np.int64)


def pad_rows(rows: Sequence[Sequence[int] | Tensor], *, pad_id: int, width: int | None = None) -> Tensor:
    """The rows as one tensor, padded on the right as by `padded`, where it is known already what is theirs."""
    return padded(rows, pad_id=pad_id, width=width).ids


def stacked_rows(tensors: Sequence[Tensor], *, fill: int) -> Tensor:
    """Batches of rows, one below the other.

    Args:
        tensors: k tensors of shape (n, t), with n and t of each its own.
        fill: what makes short rows as long as the longest.

    Returns:
        Shape (n of all, longest t).
    """
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])
