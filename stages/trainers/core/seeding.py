"""Randomness: seeding every generator, and an order of rows that a seed and an epoch decide."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, on the CPU and on every device.

    Args:
        seed: from 0 and below 2**32, which is what numpy takes.
    """
    random.seed(seed)
    # Libraries that we call draw from the global generator.
    np.random.seed(seed)
    torch.manual_seed(seed)


class InterleavedSampler(Sampler[int]):
    """Rows in an order that depends on the seed and the epoch alone, with both classes spread evenly over it.

    Each class is shuffled by itself and its rows are dealt over the epoch, one to each of as many equal stretches as
    the class has rows. So batches hold the classes in about the share that the data has, and an epoch that is
    resumed goes on in the order in which it was begun.

    Args:
        classes: class of each row; None shuffles all rows as one class.
        num_rows: number of rows.
        seed: decides the orders.
    """

    def __init__(self, classes: Sequence[bool] | None, *, num_rows: int, seed: int) -> None:
        self.classes = np.zeros(num_rows, dtype=bool) if classes is None else np.asarray(classes, dtype=bool)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of epoch `epoch` from the next pass on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[int]:
        return iter(row_order(self.classes, seed=self.seed, epoch=self.epoch))


def row_order(classes: np.ndarray, *, seed: int, epoch: int) -> list[int]:
    """The order of the rows in one epoch.

    Args:
        classes: class of each row. Shape (n,).
        seed: decides the orders of all epochs.
        epoch: number of the epoch, from 0.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    rows, places = [], []
    for value in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == value))
        rows.append(members)
        places.append((np.arange(len(members)) + generator.random(len(members))) / len(members))
    if not rows:
        return []
    order = np.argsort(np.concatenate(places), kind="stable")
    found: list[int] = np.concatenate(rows)[order].tolist()
    return found
