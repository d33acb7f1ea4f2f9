"""DDPO loss against numbers worked out by hand and against properties that follow from its definition."""

import math

import pytest
import torch

from stages.losses.ddpo import clipped_losses, ddpo_loss


def test_matches_numbers_worked_by_hand():
    # ratios 1.5, 0.5 and 1; range 0.8 to 1.2; advantages clamped to 5
    # A = 2: max(-3, -2.4) = -2.4; A = -1: max(0.5, 0.8) = 0.8; A = 5: -5
    changes = torch.tensor([math.log(1.5), math.log(0.5), 0.0])
    sampled = torch.tensor([-1.0, 2.0, 0.5])

    result = ddpo_loss(sampled + changes, sampled, torch.tensor([2.0, -1.0, 7.0]), clip_range=0.2, advantage_clip=5.0)

    torch.testing.assert_close(result.losses, torch.tensor([-2.4, 0.8, -5.0]))
    torch.testing.assert_close(result.approx_kl, 0.5 * changes.square())
    assert result.is_clipped.tolist() == [True, True, False]


def test_good_images_pull_the_policy_towards_their_steps_and_bad_ones_push_it_away():
    policy = torch.zeros(2, requires_grad=True)

    loss = ddpo_loss(policy, torch.zeros(2), torch.tensor([1.5, -0.5]), clip_range=0.1, advantage_clip=5.0).losses
    loss.sum().backward()

    torch.testing.assert_close(policy.grad, torch.tensor([-1.5, 0.5]))


def test_a_ratio_that_left_its_range_in_the_right_direction_gets_no_gradient():
    policy = torch.tensor([0.5, -0.5, -0.5, 0.5], requires_grad=True)

    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    ddpo_loss(policy, torch.zeros(4), advantages, clip_range=0.1, advantage_clip=5.0).losses.sum().backward()

    assert policy.grad[:2].tolist() == [0.0, 0.0]
    assert policy.grad[2] < 0 < policy.grad[3]


@pytest.mark.parametrize(("advantage", "loss"), [(0.0, 0.0), (2.0, -2.2)])
def test_a_ratio_that_overflows_counts_as_clipped_where_nothing_lowers_it(advantage, loss):
    policy = torch.tensor([1000.0], requires_grad=True)

    result = ddpo_loss(policy, torch.zeros(1), torch.tensor([advantage]), clip_range=0.1, advantage_clip=5.0)
    result.losses.sum().backward()

    torch.testing.assert_close(result.losses, torch.tensor([loss]))
    assert policy.grad.tolist() == [0.0]
    assert result.is_clipped.tolist() == [True]


def test_the_sampled_probability_is_a_constant():
    sampled = torch.zeros(1, requires_grad=True)

    loss = ddpo_loss(torch.zeros(1, requires_grad=True), sampled, torch.ones(1), clip_range=0.1, advantage_clip=5.0)
    loss.losses.sum().backward()

    assert sampled.grad is None


def test_clipping_makes_the_loss_larger_or_leaves_it():
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(100, generator=generator)
    ratios = torch.rand(100, generator=generator) * 2

    assert (clipped_losses(advantages, ratios, clip_range=0.1) >= -advantages * ratios).all()


def test_names_the_tensors_whose_shapes_differ():
    with pytest.raises(ValueError, match=r"'advantages': \(3,\)"):
        ddpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3), clip_range=0.1, advantage_clip=5.0)
