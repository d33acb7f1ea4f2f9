"""KTO's losses against numbers worked out by hand, and the properties that their gradients have."""

import math
from math import exp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.losses.kto import (
    UNPAIRED_LOSSES,
    check_unpaired_loss,
    kto_losses,
    mismatched_kl,
    weight_range_warning,
)

ZERO = torch.tensor(0.0)
MIXED = torch.tensor([False, True, False])


def losses_of(name, policy_logps, labels, *, reference_logps=None, kl=ZERO, beta=0.5, **weights):
    reference_logps = torch.zeros_like(policy_logps) if reference_logps is None else reference_logps
    return UNPAIRED_LOSSES[name].function(policy_logps, reference_logps, labels, kl, beta=beta, **weights)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 0.5 times ratio - kl is [2, 0.5, -1]; 1 - sigmoid(z) = 1 / (1 + exp(z)) of a desired row
        ("kto", [3 / (1 + exp(-2)), 2 / (1 + exp(0.5)), 3 / (1 + exp(1))]),
        # 0.5 times the ratio is [2.5, 1, -0.5]
        ("apo_zero_unpaired", [3 / (1 + exp(-2.5)), 2 / (1 + exp(1)), 3 / (1 + exp(0.5))]),
    ],
)
def test_matches_numbers_worked_by_hand_in_the_order_of_the_rows(name, expected):
    # log-ratios are [5, 2, -1]
    losses = losses_of(
        name,
        torch.tensor([1.0, -2.0, -4.0]),
        MIXED,
        reference_logps=torch.tensor([-4.0, -4.0, -3.0]),
        kl=torch.tensor(1.0),
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )

    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
def test_gradients_are_those_of_finite_differences(name):
    policy_logps = torch.tensor([1.0, -2.0, -4.0], dtype=torch.float64, requires_grad=True)

    def losses(logps):
        return losses_of(name, logps, MIXED, kl=torch.tensor(0.5), desirable_weight=2.0)

    assert torch.autograd.gradcheck(losses, [policy_logps])


@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
def test_desired_rows_pull_the_policy_up_and_undesired_rows_push_it_down(name):
    policy_logps = torch.zeros(3, requires_grad=True)

    losses_of(name, policy_logps, MIXED).sum().backward()

    # beta / 4 is the steepest slope
    torch.testing.assert_close(policy_logps.grad, torch.tensor([0.125, -0.125, 0.125]))


def test_rows_beyond_belief_hardly_move_the_policy():
    # a desired row that the policy finds far less likely, one that it finds as likely, one that it finds far likelier
    policy_logps = torch.tensor([-40.0, 0.0, 40.0], requires_grad=True)

    losses_of("kto", policy_logps, torch.tensor([True, True, True])).sum().backward()

    assert policy_logps.grad[1].item() == pytest.approx(-0.125)
    assert policy_logps.grad[[0, 2]].abs().max() < 1e-8


def test_the_policy_is_pulled_most_where_the_log_ratio_is_the_kl():
    policy_logps = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], requires_grad=True)

    losses_of("kto", policy_logps, torch.ones(5, dtype=torch.bool), kl=torch.tensor(3.0)).sum().backward()

    assert policy_logps.grad.argmin().item() == 3


def test_no_gradient_flows_into_the_kl_estimate():
    kl = torch.tensor(0.5, requires_grad=True)

    losses_of("kto", torch.zeros(3, requires_grad=True), MIXED, kl=kl).sum().backward()

    assert kl.grad is None


def test_apo_zero_does_not_read_the_kl_estimate():
    policy_logps = torch.tensor([1.0, -2.0, -4.0])

    found = losses_of("apo_zero_unpaired", policy_logps, MIXED, kl=torch.tensor(math.nan))

    torch.testing.assert_close(found, losses_of("kto", policy_logps, MIXED))


@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
@given(
    rows=st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=12),
    random=st.randoms(use_true_random=False),
)
def test_losses_follow_their_rows_into_another_order(name, rows, random):
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    policy_logps = torch.tensor([logp for logp, _ in rows])
    labels = torch.tensor([label for _, label in rows])

    given_kl = {"kl": torch.tensor(0.3), "desirable_weight": 1.5}
    reordered = losses_of(name, policy_logps[order], labels[order], **given_kl)

    torch.testing.assert_close(reordered, losses_of(name, policy_logps, labels, **given_kl)[order])


@given(st.floats(-30, 30), st.floats(0, 10))
def test_the_two_classes_are_mirror_images(ratio, kl):
    both = torch.tensor([kl + ratio, kl - ratio], dtype=torch.float64)

    losses = losses_of("kto", both, torch.tensor([True, False]), kl=torch.tensor(kl, dtype=torch.float64))

    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
def test_a_batch_may_hold_one_class_only_or_no_row(name, label):
    labels = torch.full((3,), label)

    assert losses_of(name, torch.ones(3), labels).isfinite().all()
    assert losses_of(name, torch.zeros(0), labels[:0]).shape == (0,)


@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_stays_finite_for_extreme_log_ratios(magnitude):
    policy_logps = torch.tensor([-magnitude, magnitude, magnitude], requires_grad=True)

    losses = losses_of("kto", policy_logps, MIXED)
    losses.sum().backward()

    assert losses.isfinite().all()
    assert policy_logps.grad.isfinite().all()


def test_names_the_tensors_whose_shapes_differ():
    with pytest.raises(ValueError, match=r"'labels': \(3,\)"):
        kto_losses(torch.zeros(2), torch.zeros(2), MIXED, ZERO, beta=0.1)


def test_refuses_labels_that_are_not_boolean():
    with pytest.raises(ValueError, match=r"boolean labels, found torch\.int64"):
        losses_of("kto", torch.zeros(2), torch.tensor([1, 0]))


def test_refuses_a_kl_estimate_per_row():
    with pytest.raises(ValueError, match=r"one estimate of the KL divergence, of shape \(\), found shape \(3,\)"):
        losses_of("kto", torch.zeros(3), MIXED, kl=torch.zeros(3))


def test_the_kl_estimate_is_the_mean_log_ratio_of_mismatched_rows_and_a_constant():
    policy_logps = torch.tensor([-3.0, -5.0], requires_grad=True)

    kl = mismatched_kl(policy_logps, torch.tensor([-6.0, -4.0]))

    assert kl.item() == 1.0
    assert kl.shape == ()
    assert not kl.requires_grad


def test_a_negative_kl_estimate_is_taken_as_zero():
    assert mismatched_kl(torch.tensor([-3.0, -5.0]), torch.tensor([-1.0, -5.0])).item() == 0.0


def test_a_kl_estimate_from_no_rows_is_refused():
    with pytest.raises(ValueError, match="expected mismatched rows"):
        mismatched_kl(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize(
    ("num_desired", "num_undesired", "desirable_weight", "undesirable_weight", "is_balanced"),
    [
        (50, 50, 5.0, 1.0, True),  # classes of one size are left alone
        (100, 50, 1.0, 1.0, False),
        (100, 50, 0.5, 1.0, True),  # desirable from 50 / 100 to 1.33 * 50 / 100
        (100, 50, 0.67, 1.0, True),  # 0.665 is rounded to 0.67
        (100, 50, 0.68, 1.0, False),
        (100, 50, 1.0, 2.0, True),  # undesirable from 100 / 50 / 1.33 to 100 / 50
        (100, 50, 1.0, 1.5, True),  # 1.504 is rounded to 1.5
        (100, 50, 1.0, 1.49, False),
        (10, 30, 3.0, 1.0, True),
        (10, 30, 1.0, 1.0, False),
    ],
)
def test_warns_of_weights_only_where_they_leave_the_classes_out_of_balance(
    num_desired, num_undesired, desirable_weight, undesirable_weight, is_balanced
):
    warning = weight_range_warning(num_desired, num_undesired, desirable_weight, undesirable_weight)

    assert (warning is None) == is_balanced


def test_the_warning_says_which_weights_would_do():
    warning = weight_range_warning(100, 50, 1.0, 1.0)

    assert warning == (
        "expected weights that balance 100 desired and 50 undesired rows, found desirable_weight 1.0 and "
        "undesirable_weight 1.0; set desirable_weight from 0.5 to 0.67, or undesirable_weight from 1.5 to 2.0"
    )


def test_warns_that_no_weight_balances_a_missing_class():
    assert "found 0 desired and 7 undesired" in weight_range_warning(0, 7, 1.0, 1.0)


@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
def test_the_losses_of_the_table_pass_the_check_before_training(name):
    assert UNPAIRED_LOSSES[name].paper.startswith("https://arxiv.org/abs/")
    check_unpaired_loss(UNPAIRED_LOSSES[name], beta=0.1)
