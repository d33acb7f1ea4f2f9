"""Batches in which a row's place and its neighbours can't change its result.

Padding to the longest row of a batch makes a row's floats depend on the rows beside it, because matrix products of
another shape add in another order. Rows are therefore padded to a width that follows from their own length alone,
and a batch always holds the same number of rows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


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


def fixed_batches(lengths: Sequence[int], *, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Group rows of one padded width each, the widest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch. The last batch of a width may hold fewer; its caller fills it up with rows
            whose results it drops, so that every batch of a width has one shape.

    Yields:
        Indices into `lengths`, ascending, and the padded width of those rows.

    Raises:
        ValueError: the batch size is below one.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, found {batch_size}")
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        buckets.setdefault(bucket_length(length), []).append(index)
    for width in sorted(buckets, reverse=True):
        rows = buckets[width]
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size], width


def pad_rows(rows: Sequence[Sequence[int]], *, width: int, pad_id: int) -> Tensor:
    """The rows as one tensor, padded on the right.

    Args:
        rows: token ids or mask values of each row.
        width: columns of the result.
        pad_id: what stands after a row's end.

    Returns:
        int64, shape (n, width).

    Raises:
        ValueError: a row is longer than `width`.
    """
    padded = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"expected rows of at most {width} tokens, found one of {len(row)}")
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded
