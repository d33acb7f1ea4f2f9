"""Seeds, and the order of rows that a seed and an epoch decide."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.trainers.core.seeding import InterleavedSampler, row_order, set_seed


def test_set_seed_repeats_the_draws_of_every_generator():
    def draws():
        set_seed(123)
        return random.random(), np.random.random(), torch.rand(()).item()

    assert draws() == draws()


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_holds_each_row_once(classes, seed, epoch):
    order = row_order(np.array(classes, dtype=bool), seed=seed, epoch=epoch)

    assert sorted(order) == list(range(len(classes)))


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    classes = np.arange(50) % 3 == 0
    torch.manual_seed(1)
    first = row_order(classes, seed=1, epoch=0)
    torch.manual_seed(2)

    assert row_order(classes, seed=1, epoch=0) == first
    assert row_order(classes, seed=2, epoch=0) != first
    assert row_order(classes, seed=1, epoch=1) != first


def test_every_stretch_holds_the_classes_in_about_their_share():
    # 200 desired, then 100 undesired, as converted pairs or a sorted log may stand
    classes = np.arange(300) < 200

    desired = classes[row_order(classes, seed=0, epoch=0)].reshape(10, 30).sum(1)

    # of 30 rows 20 are desired, give or take one at either end of the stretch, of either class
    assert ((desired >= 18) & (desired <= 22)).all()


def test_the_sampler_takes_up_the_epoch_it_is_told():
    sampler = InterleavedSampler(None, num_rows=20, seed=0)
    first = list(sampler)

    sampler.set_epoch(3)

    assert len(sampler) == 20
    assert list(sampler) != first
    assert list(sampler) == row_order(np.zeros(20, dtype=bool), seed=0, epoch=3)
