"""Advantages against numbers worked by hand."""

import numpy as np
import pytest

from stages.trainers.ddpo.advantages import PromptRewards, epoch_advantages


def test_advantages_of_an_epoch_have_mean_zero_and_deviation_one():
    # mean 2, population deviation sqrt(2/3)
    found = epoch_advantages(np.array([1.0, 2.0, 3.0]))

    assert found == pytest.approx([-np.sqrt(1.5), 0.0, np.sqrt(1.5)])


def test_equal_rewards_have_no_advantages():
    assert epoch_advantages(np.full(4, 0.3)).tolist() == [0.0] * 4


def test_few_rewards_of_a_prompt_are_compared_with_all_of_their_epoch():
    memory = PromptRewards(buffer_size=8, min_count=3)

    # mean 3, deviation sqrt((4 + 1 + 1 + 4) / 4)
    found = memory.advantages(["a", "a", "b", "b"], np.array([1.0, 2.0, 4.0, 5.0]))

    assert found == pytest.approx(np.array([-2.0, -1.0, 1.0, 2.0]) / np.sqrt(2.5), rel=1e-5)


def test_enough_rewards_of_a_prompt_are_compared_with_each_other_over_epochs():
    memory = PromptRewards(buffer_size=8, min_count=3)
    memory.advantages(["a", "a", "b"], np.array([1.0, 2.0, 9.0]))

    # a: 1, 2, 3 with mean 2 and deviation sqrt(2/3); b: still too few, so 3 and 11 with mean 7 and deviation 4
    found = memory.advantages(["a", "b"], np.array([3.0, 11.0]))

    assert found == pytest.approx([np.sqrt(1.5), 1.0], rel=1e-5)


def test_only_the_last_rewards_are_remembered():
    memory = PromptRewards(buffer_size=2, min_count=1)
    memory.advantages(["a"] * 3, np.array([100.0, 1.0, 3.0]))

    assert memory.state() == {"a": [1.0, 3.0]}


def test_goes_on_from_its_state():
    memory = PromptRewards(buffer_size=4, min_count=2)
    memory.advantages(["a", "a", "b"], np.array([1.0, 2.0, 5.0]))

    resumed = PromptRewards(4, 2, memory.state())

    new = (["a", "b"], np.array([0.5, 3.0]))
    assert resumed.advantages(*new).tolist() == memory.advantages(*new).tolist()
    assert resumed.state() == memory.state()


def test_o3_integer_rewards_have_fractional_advantages():
    found = epoch_advantages(np.array([1, 2, 2]))

    assert found == pytest.approx([-np.sqrt(2), np.sqrt(0.5), np.sqrt(0.5)])
