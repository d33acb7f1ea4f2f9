"""Means over rows, gathered step by step."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from stages.trainers.core.metrics import MetricSums, Share, by_class, share_of
from tests.apple_device import MPS, without_doubles


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_a_mean_weighs_rows_and_not_batches(accelerator):
    sums = MetricSums()
    sums.add({"x": share_of(torch.tensor([1.0, 2.0, 3.0]))})
    sums.add({"x": share_of(torch.tensor([6.0]))})

    assert sums.drain(accelerator) == {"x": 3.0}
    assert sums.drain(accelerator) == {}


def test_a_class_without_rows_is_left_out_and_margins_need_both(accelerator):
    sums = MetricSums()
    sums.add(by_class("rewards", torch.tensor([1.0, 3.0]), torch.tensor([True, True])))
    assert sums.drain(accelerator) == {"rewards/chosen": 2.0}

    sums.add(by_class("rewards", torch.tensor([1.0, 3.0]), torch.tensor([True, False])))
    assert sums.drain(accelerator) == {"rewards/chosen": 1.0, "rewards/rejected": 3.0, "rewards/margins": -2.0}


def test_a_value_of_an_other_class_may_be_anything(accelerator):
    sums = MetricSums()

    sums.add({"x": share_of(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))})

    assert sums.drain(accelerator) == {"x": 1.0}


def test_sums_go_on_from_their_state_to_the_last_bit(accelerator):
    values = torch.rand(3, generator=torch.Generator().manual_seed(0))
    whole, first, second = MetricSums(), MetricSums(), MetricSums()
    for value in values:
        whole.add({"x": Share(value, torch.tensor(1.0))})
    first.add({"x": Share(values[0], torch.tensor(1.0))})

    second.restore(first.state(accelerator), accelerator)
    for value in values[1:]:
        second.add({"x": Share(value, torch.tensor(1.0))})

    assert second.drain(accelerator) == whole.drain(accelerator)


@pytest.mark.parametrize("names", ["x", "y"], ids=["with the same name", "with another one"])
def test_sums_go_on_from_their_state_where_no_doubles_are(names):
    device = SimpleNamespace(device=MPS, process_index=0, num_processes=1)
    with without_doubles():
        sums = MetricSums()
        sums.restore({"x": [[1.5, 2.0]]}, device)

        sums.add({names: Share(torch.ones((), device=MPS), torch.tensor(1.0, dtype=torch.float64))})

        assert sums._table(sorted(sums._sums), device).device.type == "mps"
