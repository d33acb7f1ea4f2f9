"""BCO loss and reward shift against numbers worked out by hand and properties that follow from their definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.losses.bco import bco_loss
from stages.losses.moments import RewardMoments

ZERO = torch.tensor(0.0)
BOTH = torch.tensor([True, False])


def test_matches_numbers_worked_by_hand():
    # rewards = 0.5 * [4 - 0, 0 - 2] = [2, -1]; logits = rewards - 1 = [1, -2]
    # desired: 2 * -log sigmoid(1); undesired: 3 * -log sigmoid(-(-2))
    result = bco_loss(
        torch.tensor([4.0, 0.0]),
        torch.tensor([0.0, 2.0]),
        BOTH,
        beta=0.5,
        reward_shift=torch.tensor(1.0),
        weights=torch.tensor([2.0, 3.0]),
    )

    expected = torch.tensor([2.0 * math.log1p(math.exp(-1.0)), 3.0 * math.log1p(math.exp(-2.0))])
    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(result.rewards, torch.tensor([2.0, -1.0]))


def test_costs_log_two_where_policy_equals_reference():
    logps = torch.tensor([-3.0, -7.0])

    result = bco_loss(logps, logps, BOTH, beta=0.1, reward_shift=ZERO)

    torch.testing.assert_close(result.losses, torch.full((2,), math.log(2.0)))


def test_a_logit_offset_adds_to_the_logit_of_either_class():
    # logits = 0 - 0 + [1, 1]: the desired row is cheaper, the undesired one dearer
    result = bco_loss(torch.zeros(2), torch.zeros(2), BOTH, beta=0.1, reward_shift=ZERO, logit_offsets=torch.ones(2))

    torch.testing.assert_close(result.losses, torch.tensor([math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))]))


def test_an_offset_equal_to_the_shift_cancels_it():
    given_logps = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]), BOTH)

    with_both = bco_loss(*given_logps, beta=0.3, reward_shift=torch.tensor(0.7), logit_offsets=torch.full((2,), 0.7))

    torch.testing.assert_close(with_both.losses, bco_loss(*given_logps, beta=0.3, reward_shift=ZERO).losses)


def test_desired_rows_pull_the_policy_up_and_undesired_rows_push_it_down():
    policy_logps = torch.zeros(2, requires_grad=True)

    bco_loss(policy_logps, torch.zeros(2), BOTH, beta=0.1, reward_shift=ZERO).losses.sum().backward()

    torch.testing.assert_close(policy_logps.grad, torch.tensor([-0.05, 0.05]))


def test_no_gradient_flows_into_shift_or_rewards():
    shift = torch.tensor(0.5, requires_grad=True)
    policy_logps = torch.zeros(2, requires_grad=True)

    result = bco_loss(policy_logps, torch.zeros(2), BOTH, beta=0.1, reward_shift=shift)
    result.losses.sum().backward()

    assert shift.grad is None
    assert not result.rewards.requires_grad


@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_stays_finite_for_extreme_log_ratios(magnitude):
    policy_logps = torch.tensor([-magnitude, magnitude], requires_grad=True)

    result = bco_loss(policy_logps, torch.zeros(2), BOTH, beta=0.1, reward_shift=ZERO)
    result.losses.sum().backward()

    assert result.losses.isfinite().all()
    assert policy_logps.grad.isfinite().all()


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_may_hold_one_class_only(label):
    labels = torch.full((3,), label)

    result = bco_loss(torch.ones(3), torch.zeros(3), labels, beta=1.0, reward_shift=ZERO)

    assert result.losses.isfinite().all()
    assert bco_loss(*[torch.zeros(0)] * 2, labels[:0], beta=1.0, reward_shift=ZERO).losses.shape == (0,)


def test_names_the_tensors_whose_shapes_differ():
    with pytest.raises(ValueError, match=r"'weights': \(3,\)"):
        bco_loss(torch.zeros(2), torch.zeros(2), BOTH, beta=0.1, reward_shift=ZERO, weights=torch.ones(3))


def test_refuses_labels_that_are_not_boolean():
    with pytest.raises(ValueError, match=r"boolean labels, found torch\.int64"):
        bco_loss(torch.zeros(2), torch.zeros(2), torch.tensor([1, 0]), beta=0.1, reward_shift=ZERO)


def test_the_pooled_shift_follows_the_majority_and_the_balanced_one_does_not():
    # nine desired rows at +1 and one undesired at -1: pooled (9 - 1) / 10, balanced (1 - 1) / 2
    rewards = torch.tensor([1.0] * 9 + [-1.0])

    moments = RewardMoments.of(rewards, rewards > 0)

    torch.testing.assert_close(moments.shift("pooled"), torch.tensor(0.8))
    torch.testing.assert_close(moments.shift("balanced"), torch.tensor(0.0))


@pytest.mark.parametrize("kind", ["pooled", "balanced"])
def test_the_shift_is_zero_before_any_row_and_the_mean_of_the_only_class_seen(kind):
    assert RewardMoments.empty().shift(kind).item() == 0.0

    seen = RewardMoments.empty().merged(RewardMoments.of(torch.tensor([1.0, 3.0]), torch.tensor([True, True])))

    assert seen.shift(kind).item() == 2.0


@given(st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=2, max_size=40), st.integers(0, 40))
def test_moments_do_not_depend_on_how_rows_were_cut_into_batches(rows, cut):
    rewards = torch.tensor([reward for reward, _ in rows])
    labels = torch.tensor([label for _, label in rows])

    cut_up = RewardMoments.empty()
    for part in (slice(0, cut), slice(cut, None)):
        cut_up = cut_up.merged(RewardMoments.of(rewards[part], labels[part]))

    whole = RewardMoments.of(rewards, labels)
    for found, expected in zip(cut_up, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.shift("pooled"), rewards.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.pooled_variance(), rewards.double().var(correction=0), rtol=1e-9, atol=1e-9)


def test_decay_makes_older_rows_count_less():
    # a row at 0 that counts half, then a row at 3: (0.5 * 0 + 1 * 3) / 1.5
    labels = torch.tensor([True])

    moments = RewardMoments.of(torch.zeros(1), labels).merged(RewardMoments.of(torch.tensor([3.0]), labels), decay=0.5)

    assert moments.shift("pooled").item() == 2.0
