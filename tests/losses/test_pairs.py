"""What losses over pairs are given: log-ratios, margins, means over tokens, and settings within their ranges."""

import math

import pytest
import torch

from stages.losses.pairs import PairLogps, PairSettings

PAIR = PairLogps(*(torch.tensor([number]) for number in (-2.0, -7.0, -6.0, -4.0, 2.0, 5.0)))


def test_log_ratios_are_policy_minus_reference_and_margins_chosen_minus_rejected():
    chosen, rejected = PAIR.log_ratios()

    assert (chosen.item(), rejected.item(), PAIR.margins().item()) == (4.0, -3.0, 7.0)


def test_means_over_tokens_divide_each_side_by_its_own_length():
    means = PAIR.per_token()

    found = torch.cat([means.policy_chosen, means.policy_rejected, means.reference_chosen, means.reference_rejected])
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.4, -3.0, -0.8]))


def test_a_completion_without_tokens_has_mean_zero():
    empty = PAIR._replace(policy_chosen=torch.zeros(1), chosen_tokens=torch.zeros(1))

    assert empty.per_token().policy_chosen.item() == 0.0


def test_a_column_of_scores_is_not_taken_for_rows():
    with pytest.raises(ValueError, match=r"one entry per row in each tensor, found shapes .*\(2, 1\)"):
        PairLogps(*[torch.zeros(2, 1)] * 6).margins()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0.0}, "beta and discopop_tau above 0, found beta 0.0"),
        ({"beta": math.nan}, "found beta nan"),
        ({"discopop_tau": -1.0}, "discopop_tau -1.0"),
        ({"label_smoothing": 0.5}, "from 0 and below 0.5, the share of swapped labels, found 0.5"),
        ({"label_smoothing": -0.1}, "found -0.1"),
        ({"simpo_gamma": -1.0}, "expected simpo_gamma and cpo_alpha from 0, found simpo_gamma -1.0"),
        ({"cpo_alpha": -2.0}, "cpo_alpha -2.0"),
        ({"f_divergence_type": "kl"}, "f_divergence_type as one of reverse_kl, forward_kl, .*, found 'kl'"),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.0}, "above 0 and up to 1, found 0.0"),
        ({"f_alpha_divergence_coef": 0.7}, "but f_divergence_type reverse_kl doesn't read it; set alpha_divergence"),
    ],
)
def test_settings_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        PairSettings(**{"beta": 0.1} | changed)


def test_changed_settings_are_those_that_are_not_at_their_default():
    settings = PairSettings(beta=9.0, cpo_alpha=2.0, ipo_averages=True, reward_shift=torch.tensor(0.0))

    assert settings.changed() == ("cpo_alpha", "reward_shift")
