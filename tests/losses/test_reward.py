"""Loss of a reward model against numbers worked out by hand and properties that follow from its definition."""

import math

import pytest
import torch

from stages.losses.reward import reward_loss


def test_matches_numbers_worked_by_hand():
    # leads = [3 - 1, 0 - 1] = [2, -1]; less margins [0.5, 1] that is [1.5, -2]; weights 1 and 3
    result = reward_loss(
        torch.tensor([3.0, 0.0]),
        torch.tensor([1.0, 1.0]),
        margins=torch.tensor([0.5, 1.0]),
        weights=torch.tensor([1.0, 3.0]),
    )

    expected = torch.tensor([math.log1p(math.exp(-1.5)), 3 * math.log1p(math.exp(2.0))])
    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(result.leads, torch.tensor([2.0, -1.0]))


def test_r1_each_pair_has_its_own_margin():
    chosen, rejected = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.5, 0.5, -1.0])
    margins = torch.tensor([0.0, 2.0, 1.0])

    together = reward_loss(chosen, rejected, margins=margins).losses

    alone = [reward_loss(chosen[i, None], rejected[i, None], margins=margins[i, None]).losses for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_r1_scores_in_a_column_are_refused_rather_than_paired_with_every_margin():
    with pytest.raises(ValueError, match=r"'chosen_scores': \(4, 1\).*'margins': \(4,\)"):
        reward_loss(torch.zeros(4, 1), torch.zeros(4, 1), margins=torch.zeros(4))
    with pytest.raises(ValueError, match=r"\(4, 1\)"):
        reward_loss(torch.zeros(4, 1), torch.zeros(4, 1))


def test_pulls_chosen_up_and_rejected_down_by_the_same_amount():
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)

    reward_loss(chosen, rejected).losses.sum().backward()

    torch.testing.assert_close(chosen.grad, torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.5, 0.5]))


def test_depends_on_differences_of_scores_alone():
    chosen, rejected = torch.tensor([0.3, -1.0]), torch.tensor([0.1, 0.5])

    torch.testing.assert_close(
        reward_loss(chosen + 7, rejected + 7).losses, reward_loss(chosen, rejected).losses, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_stays_finite_for_extreme_scores(magnitude):
    scores = torch.tensor([-magnitude, magnitude])

    assert reward_loss(scores, -scores).losses.isfinite().all()


def test_centering_matches_numbers_worked_by_hand():
    # leads = [2, -1]; sums of scores = [4, 1], their squares [16, 1], a hundredth of them [0.16, 0.01]; weights 1 and 3
    result = reward_loss(
        torch.tensor([3.0, 0.0]),
        torch.tensor([1.0, 1.0]),
        weights=torch.tensor([1.0, 3.0]),
        centering=0.01,
    )

    expected = torch.tensor([math.log1p(math.exp(-2.0)) + 0.16, 3 * (math.log1p(math.exp(1.0)) + 0.01)])
    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(result.leads, torch.tensor([2.0, -1.0]))


def test_centering_pulls_both_scores_of_a_pair_by_the_same_amount_until_they_add_up_to_0():
    scores = torch.tensor([[2.0, 0.5], [1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    found = [torch.autograd.grad(reward_loss(*scores, centering=c).losses.sum(), scores)[0] for c in (None, 0.0, 0.25)]

    # The gradient of c * (chosen + rejected)^2 is 2 c * (chosen + rejected) in both: [1.5, 0].
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2] - found[0], torch.tensor([[1.5, 0.0], [1.5, 0.0]], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda pair: reward_loss(*pair, centering=0.25).losses, scores)
