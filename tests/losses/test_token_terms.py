"""What losses make of single tokens' log-probabilities, against numbers worked by hand."""

import math

import pytest
import torch

from stages.losses.token_terms import humanline_clamped, length_weights, nll_losses, on_policy_weights


def test_likelihood_is_a_mean_over_the_tokens_of_each_completion():
    # -(-6) / 3, -(-1) / 4, and nothing of a completion without tokens
    losses = nll_losses(torch.tensor([-6.0, -1.0, 0.0]), torch.tensor([3, 4, 0]))

    assert losses.tolist() == [2.0, 0.25, 0.0]


def test_a_completion_weighs_as_it_is_likely_among_the_policys_own():
    # Two tokens of p = 1/2 beside 1/4 and 1/4: sum p^2 = 3/8, so each is 4/3 of it; one of p = 1/4 is 2/3 of it.
    log = math.log
    logps, entropies = torch.tensor([2 * log(1 / 2), log(1 / 4)]), torch.tensor([-2 * log(3 / 8), -log(3 / 8)])

    weights = on_policy_weights(logps.requires_grad_(), entropies, torch.tensor([2, 1]))

    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3]))
    assert not weights.requires_grad


def test_under_a_uniform_policy_all_completions_weigh_one():
    # p = 1/8 at each of 5 tokens, and sum p^2 = 8 / 64
    weights = on_policy_weights(torch.tensor([-5 * math.log(8)]), torch.tensor([5 * math.log(8)]), torch.tensor([5]))

    assert weights.item() == pytest.approx(1.0)


def test_tokens_behind_the_shorter_completion_of_a_pair_weigh_alpha():
    # Pairs of 2 and 4 tokens, and of 3 and 1; a prompt of one token stands before each.
    lengths = [2, 3, 4, 1]
    mask = torch.tensor([[0] + [1] * length + [0] * (4 - length) for length in lengths])

    weights = length_weights(mask, alpha=0.25)

    expected = [[0, 1, 1, 0, 0], [0, 1, 0.25, 0.25, 0], [0, 1, 1, 0.25, 0.25], [0, 1, 0, 0, 0]]
    assert weights.tolist() == expected
    assert length_weights(mask, alpha=1.0).tolist() == mask.tolist()
    assert length_weights(mask, alpha=0.0).sum(-1).tolist() == [2, 1, 2, 1]


def test_log_ratios_of_tokens_stay_within_bounds_and_tokens_out_of_them_have_no_gradient():
    # Log-ratios are [-2, -0.5, 0, 1, 3]; -2 becomes -1 and 3 becomes 1.5.
    reference = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0]], dtype=torch.float64)
    policy = torch.tensor([[-3.0, -2.5, -3.0, -3.0, -2.0]], dtype=torch.float64, requires_grad=True)

    clamped = humanline_clamped(policy, reference, low=-1.0, high=1.5)
    clamped.sum().backward()

    assert (clamped - reference).tolist() == [[-1.0, -0.5, 0.0, 1.0, 1.5]]
    assert policy.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    assert torch.autograd.gradcheck(lambda own: humanline_clamped(own, reference, low=-1.0, high=1.5), policy)
