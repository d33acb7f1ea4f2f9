"""Losses over pairs against numbers worked out by hand, and the properties that their gradients have."""

import math
from math import exp, log1p

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.losses.dpo import PAIR_LOSSES, check_pair_loss, pair_loss_kind, unread_settings
from stages.losses.pairs import PairLogps, PairSettings

# Two pairs with log-ratios c = [4, -1] and r = [-2, 1], so h = [6, -2]; at beta 0.5 the rewards are [2, -0.5] and
# [-1, 0.5], and beta h = [3, -1]. Per token c = [2, -0.2], r = [-0.5, 1] and h = [2.5, -1.2].
PAIRS = PairLogps(
    policy_chosen=torch.tensor([-2.0, -5.0]),
    policy_rejected=torch.tensor([-7.0, -3.0]),
    reference_chosen=torch.tensor([-6.0, -4.0]),
    reference_rejected=torch.tensor([-5.0, -4.0]),
    chosen_tokens=torch.tensor([2, 5]),
    rejected_tokens=torch.tensor([4, 1]),
)
OWN_SETTINGS = {
    "robust": {"label_smoothing": 0.1},
    "exo_pair": {"label_smoothing": 0.1},
    "bco_pair": {"reward_shift": torch.tensor(0.25)},
}
"""What these losses can't do without, or would be another loss without."""
OF_MARGINS = ("sigmoid", "robust", "hinge", "exo_pair", "discopop")
"""Losses that depend on the log-probabilities through the margin of summed log-ratios alone."""
SEEING_ONE_PAIR = sorted(set(PAIR_LOSSES) - {"kto_pair"})
"""Losses of a pair that don't depend on the rest of its batch."""


def settings_of(name, *, beta=0.5, **changed):
    return PairSettings(beta=beta, **OWN_SETTINGS.get(name, {}) | changed)


def losses_of(name, logps=PAIRS, **changed):
    return PAIR_LOSSES[name].function(logps, settings_of(name, **changed))


def pairs_with(chosen, rejected, *, tokens=1):
    """Pairs of these log-ratios under a reference of zeros; float64 and differentiable."""
    chosen, rejected = (torch.as_tensor(ratios, dtype=torch.float64) for ratios in (chosen, rejected))
    chosen, rejected = (ratios.clone().requires_grad_() for ratios in (chosen, rejected))
    zeros, counts = torch.zeros_like(chosen), torch.full(chosen.shape, tokens)
    return PairLogps(chosen, rejected, zeros, zeros, counts, counts)


def gradients(name, logps, **changed):
    total = losses_of(name, logps, **changed).sum()
    found = torch.autograd.grad(total, [logps.policy_chosen, logps.policy_rejected], allow_unused=True)
    return [torch.zeros_like(logps.policy_chosen) if grad is None else grad for grad in found]


def kl_to(probability, target):
    return probability * math.log(probability / target)


SIGMOID_3, SIGMOID_1 = 1 / (1 + exp(-3)), 1 / (1 + exp(-1))


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("sigmoid", {}, [log1p(exp(-3)), log1p(exp(1))]),
        (
            "sigmoid",
            {"label_smoothing": 0.1},
            [0.9 * log1p(exp(-3)) + 0.1 * log1p(exp(3)), 0.9 * log1p(exp(1)) + 0.1 * log1p(exp(-1))],
        ),
        (
            "robust",
            {},
            [(0.9 * log1p(exp(-3)) - 0.1 * log1p(exp(3))) / 0.8, (0.9 * log1p(exp(1)) - 0.1 * log1p(exp(-1))) / 0.8],
        ),
        ("hinge", {}, [0, 2]),
        ("ipo", {}, [1.5**2, 2.2**2]),  # the target is 1 / (2 * 0.5)
        ("ipo", {"ipo_averages": False}, [5**2, 3**2]),
        (
            "exo_pair",
            {},
            [
                kl_to(SIGMOID_3, 0.9) + kl_to(1 - SIGMOID_3, 0.1),
                kl_to(1 - SIGMOID_1, 0.9) + kl_to(SIGMOID_1, 0.1),
            ],
        ),
        (
            "nca_pair",
            {},
            [
                log1p(exp(-2)) + (log1p(exp(2)) + log1p(exp(-1))) / 2,
                log1p(exp(0.5)) + (log1p(exp(-0.5)) + log1p(exp(0.5))) / 2,
            ],
        ),
        ("apo_zero", {}, [1 / (1 + exp(2)) + 1 / (1 + exp(1)), 2 / (1 + exp(-0.5))]),
        ("apo_down", {}, [1 / (1 + exp(-2)) + 1 / (1 + exp(3)), 1 / (1 + exp(0.5)) + 1 / (1 + exp(-1))]),
        (
            "discopop",
            {"discopop_tau": 2.0},  # the exponential part counts sigmoid(1.5) and sigmoid(-0.5)
            [
                log1p(exp(-3)) / (1 + exp(1.5)) + exp(-3) / (1 + exp(-1.5)),
                log1p(exp(1)) / (1 + exp(-0.5)) + exp(1) / (1 + exp(0.5)),
            ],
        ),
        # per token beta h = [1.25, -0.6]
        ("sigmoid_norm", {}, [log1p(exp(-1.25)), log1p(exp(0.6))]),
        # the targets are 1 and -1
        ("sppo_hard", {}, [3**2 + 1**2, 2**2 + 2**2]),
        ("sft", {}, [1, 1]),
        ("bco_pair", {}, [log1p(exp(-1.75)) + log1p(exp(-1.25)), log1p(exp(0.75)) + log1p(exp(0.25))]),
        # the mean of c is 1.5, that of r -0.5 and so taken as 0; chosen first: 0.5 (0 - c), then 0.5 (r - 1.5)
        ("kto_pair", {}, [1 / (1 + exp(2)), 1 / (1 + exp(-0.5)), 1 / (1 + exp(1.75)), 1 / (1 + exp(0.25))]),
        # policy per token: chosen [-1, -1], rejected [-1.75, -3]
        ("simpo", {"simpo_gamma": 0.25}, [log1p(exp(-0.125)), log1p(exp(-0.75))]),
        ("cpo", {"cpo_alpha": 2.0}, [log1p(exp(-2.5)) + 2, log1p(exp(1)) + 2]),
        # odds are 1 / (exp(-mean) - 1)
        (
            "orpo",
            {},
            [1 + log1p((exp(1) - 1) / (exp(1.75) - 1)) / 2, 1 + log1p((exp(1) - 1) / (exp(3) - 1)) / 2],
        ),
    ],
)
def test_matches_numbers_worked_by_hand(name, changed, expected):
    losses = losses_of(name, **changed)

    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_gradients_are_those_of_finite_differences(name):
    # KL estimates that are constants have no gradient where differences see a slope.
    settings = settings_of(name, detach_kl=False, label_smoothing=0.1)
    logps = PairLogps(*(tensor.double() for tensor in PAIRS))
    policy = [logps.policy_chosen.clone().requires_grad_(), logps.policy_rejected.clone().requires_grad_()]

    def losses(chosen, rejected):
        return PAIR_LOSSES[name].function(
            logps._replace(policy_chosen=chosen, policy_rejected=rejected),
            settings,
        )

    assert torch.autograd.gradcheck(losses, policy)


@pytest.mark.parametrize("name", OF_MARGINS)
@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20))
def test_gradients_of_chosen_and_rejected_are_opposite(name, chosen, rejected):
    towards_chosen, towards_rejected = gradients(name, pairs_with([chosen], [rejected]))

    torch.testing.assert_close(towards_chosen, -towards_rejected)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "nca_pair", "apo_zero", "bco_pair", "kto_pair", "cpo"])
def test_the_first_step_raises_chosen_and_lowers_rejected_completions(name):
    towards_chosen, towards_rejected = gradients(name, pairs_with([0.0, 0.0], [0.0, 0.0]))

    assert (towards_chosen < 0).all()
    assert (towards_rejected > 0).all()


def test_sigmoid_starts_at_log_two_with_half_of_beta_as_its_slope():
    logps = pairs_with([0.0], [0.0])

    assert losses_of("sigmoid", logps).item() == pytest.approx(math.log(2))
    assert gradients("sigmoid", logps, beta=0.5)[0].item() == pytest.approx(-0.25)


@pytest.mark.parametrize("name", ["sigmoid", "exo_pair"])
def test_smoothed_losses_rest_where_the_policy_prefers_as_many_as_the_raters(name):
    # sigmoid(beta h) = 0.9 at beta h = log 9
    logps = pairs_with([2 * math.log(9)], [0.0])

    towards_chosen, _ = gradients(name, logps, label_smoothing=0.1)

    assert towards_chosen.item() == pytest.approx(0, abs=1e-12)


@given(margin=st.floats(-20, 20), share=st.floats(0, 0.45))
def test_the_robust_loss_is_on_average_that_of_unswapped_labels(margin, share):
    as_given, swapped = (losses_of("robust", pairs_with([h], [0.0]), label_smoothing=share) for h in (margin, -margin))

    expected = losses_of("sigmoid", pairs_with([margin], [0.0]))
    torch.testing.assert_close((1 - share) * as_given + share * swapped, expected, rtol=1e-9, atol=1e-9)


def test_the_hinge_has_slope_beta_below_its_margin_and_none_beyond():
    # beta h = [0.9, 1.1] at beta 0.5
    towards_chosen, _ = gradients("hinge", pairs_with([1.8, 2.2], [0.0, 0.0]))

    torch.testing.assert_close(towards_chosen, torch.tensor([-0.5, 0.0], dtype=torch.float64))


def test_ipo_rests_at_its_target_and_pulls_wider_margins_back():
    # the target is 1 / (2 * 0.5)
    towards_chosen, _ = gradients("ipo", pairs_with([0.5, 1.0, 1.5], [0.0, 0.0, 0.0]))

    torch.testing.assert_close(towards_chosen, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))


def test_d1_ipo_averages_over_tokens_by_default_and_sums_as_an_option():
    # a difference of 0.2 per token at 10 and at 100 tokens; at beta 0.1 the target is 5
    short, long = (pairs_with([0.2 * tokens], [0.0], tokens=tokens) for tokens in (10, 100))

    averaged = [losses_of("ipo", logps, beta=0.1).item() for logps in (short, long)]
    summed = [losses_of("ipo", logps, beta=0.1, ipo_averages=False).item() for logps in (short, long)]

    assert averaged == pytest.approx([4.8**2, 4.8**2])
    assert summed == pytest.approx([9, 225])


def test_exo_costs_nothing_at_the_raters_own_preferences():
    losses = losses_of("exo_pair", pairs_with([2 * math.log(9), 0.0], [0.0, 0.0]))

    assert losses[0].item() == pytest.approx(0, abs=1e-12)
    assert losses[1] > 0


def test_nca_holds_the_reward_of_chosen_completions_at_log_two():
    # rewards 0.2 below log 2, at it, and 0.2 above it
    chosen = [2 * (math.log(2) + gap) for gap in (-0.2, 0.0, 0.2)]

    below, there, above = gradients("nca_pair", pairs_with(chosen, [0.0] * 3))[0]

    assert below < 0 < above
    assert there.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["nca_pair", "apo_zero", "bco_pair", "kto_pair"])
def test_a_completion_is_moved_alike_whatever_the_other_one(name):
    near, far = (gradients(name, pairs_with([0.5, 0.5], [r, -r - 1.0]))[0] for r in (0.0, 7.0))

    torch.testing.assert_close(near, far)


@given(chosen=st.floats(-8, 8), rejected=st.floats(-8, 8))
def test_apo_down_lowers_rejected_and_where_the_margin_is_wider_also_chosen(chosen, rejected):
    towards_chosen, towards_rejected = gradients("apo_down", pairs_with([chosen], [rejected]))

    assert towards_rejected.item() > 0
    if abs(abs(chosen - rejected) - abs(chosen)) > 1e-3:
        assert (towards_chosen.item() > 0) == (abs(chosen - rejected) > abs(chosen))


def test_discopop_is_logistic_for_wrong_margins_and_exponential_for_right_ones():
    # rewards -2 and 2, forty times the width of the passage
    losses = losses_of("discopop", pairs_with([-4.0, 4.0], [0.0, 0.0]))

    torch.testing.assert_close(losses, torch.tensor([log1p(exp(2)), exp(-2)], dtype=torch.float64))


def test_no_gradient_flows_into_the_reward_shift():
    shift = torch.tensor(0.5, requires_grad=True)

    losses_of("bco_pair", pairs_with([1.0], [0.0]), reward_shift=shift).sum().backward()

    assert shift.grad is None


def test_d6_kl_estimates_of_kto_pair_are_constants_by_default_and_differentiable_as_an_option():
    # K_c is the mean of c, (1 + 2) / 2; K_r that of r, (-1 - 2) / 2, is taken as 0 and without slope in any case
    logps = pairs_with([1.0, 2.0], [-1.0, -2.0])

    detached, _ = gradients("kto_pair", logps)
    attached, _ = gradients("kto_pair", logps, detach_kl=False)

    def slope(reward):
        return exp(-reward) / (1 + exp(-reward)) ** 2

    own = torch.tensor([-0.5 * slope(0.5), -0.5 * slope(1.0)], dtype=torch.float64)
    # the two rejected rows cost sigmoid(0.5 (r - K_c)), whose slope in each of two c is -0.5 / 2
    through_kl = -0.25 * (slope(0.5 * -2.5) + slope(0.5 * -3.5))
    torch.testing.assert_close(detached, own)
    torch.testing.assert_close(attached, own + through_kl)


def test_simpo_moves_all_tokens_of_a_pair_alike():
    logps = pairs_with([-4.0], [-9.0])._replace(chosen_tokens=torch.tensor([2]), rejected_tokens=torch.tensor([6]))

    towards_chosen, towards_rejected = gradients("simpo", logps)

    assert towards_chosen.item() < 0
    torch.testing.assert_close(towards_chosen * 2, -towards_rejected * 6)


def test_cpo_keeps_raising_the_likelihood_of_chosen_completions_beyond_any_margin():
    # alpha 1.5 over 3 tokens
    towards_chosen, towards_rejected = gradients("cpo", pairs_with([-1.0], [-1e3], tokens=3), cpo_alpha=1.5)

    assert towards_chosen.item() == pytest.approx(-0.5)
    assert towards_rejected.item() == pytest.approx(0, abs=1e-12)


def test_orpo_without_beta_to_speak_of_is_the_likelihood_of_chosen_completions():
    towards_chosen, towards_rejected = gradients("orpo", pairs_with([-6.0], [-3.0], tokens=3), beta=1e-12)

    assert towards_chosen.item() == pytest.approx(-1 / 3)
    assert 0 < towards_rejected.item() < 1e-11


@pytest.mark.parametrize("name", sorted(name for name, kind in PAIR_LOSSES.items() if not kind.needs_reference))
def test_a_loss_that_needs_no_reference_does_not_read_it(name):
    without = PAIRS._replace(reference_chosen=torch.zeros(2), reference_rejected=torch.zeros(2))

    torch.testing.assert_close(losses_of(name), losses_of(name, without))


@pytest.mark.parametrize("name", sorted(name for name, kind in PAIR_LOSSES.items() if kind.needs_reference))
@given(shift=st.floats(-30, 30))
def test_what_policy_and_reference_share_changes_nothing(name, shift):
    logps = PairLogps(*(tensor.double() for tensor in PAIRS))
    shifted = logps._replace(policy_chosen=logps.policy_chosen + shift, reference_chosen=logps.reference_chosen + shift)

    torch.testing.assert_close(losses_of(name, logps), losses_of(name, shifted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SEEING_ONE_PAIR)
def test_pairs_cost_the_same_alone_and_together(name):
    alone = [losses_of(name, PairLogps(*(tensor[i : i + 1] for tensor in PAIRS))) for i in range(2)]

    torch.testing.assert_close(losses_of(name), torch.cat(alone))


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
@pytest.mark.parametrize("magnitude", [1e4, 1e15])
def test_stays_finite_for_extreme_log_probabilities(name, magnitude):
    chosen, rejected = (torch.tensor(logps, requires_grad=True) for logps in ([-magnitude, 0.0], [0.0, -magnitude]))
    counts = torch.ones(2)

    losses = losses_of(name, PairLogps(chosen, rejected, torch.zeros(2), torch.zeros(2), counts, counts))
    losses.sum().backward()

    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad is None or rejected.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_a_batch_may_be_empty_and_a_completion_without_tokens(name):
    empty = PairLogps(*(tensor[:0] for tensor in PAIRS))
    silent = PAIRS._replace(rejected_tokens=torch.tensor([0, 1]), policy_rejected=torch.tensor([0.0, -3.0]))

    assert losses_of(name, empty).shape == (0,)
    assert losses_of(name, silent).isfinite().all()


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_names_the_tensors_whose_shapes_differ(name):
    with pytest.raises(ValueError, match=r"'policy_rejected': \(3,\)"):
        losses_of(name, PAIRS._replace(policy_rejected=torch.zeros(3)))


def test_exo_without_smoothing_is_refused_with_a_value_to_take():
    with pytest.raises(ValueError, match="label_smoothing above 0 for exo_pair, found 0; its paper takes 1e-3"):
        losses_of("exo_pair", label_smoothing=0.0)


def test_bco_pair_without_a_shift_is_refused():
    with pytest.raises(ValueError, match="expected reward_shift"):
        losses_of("bco_pair", reward_shift=None)


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_each_loss_reads_the_settings_of_its_row_and_no_other(name):
    changed = {
        "label_smoothing": 0.2,
        "ipo_averages": False,
        "simpo_gamma": 1.5,
        "cpo_alpha": 2.0,
        "discopop_tau": 1.0,
        "detach_kl": False,
        "reward_shift": torch.tensor(1.0),
        "f_divergence_type": "js_divergence",
    }

    def seen(**settings):
        logps = PairLogps(*pairs_with([4.0, -1.0], [-2.0, 1.0], tokens=3))
        return torch.cat([losses_of(name, logps, **settings), *gradients(name, logps, **settings)])

    read = {setting for setting, value in changed.items() if not torch.equal(seen(), seen(**{setting: value}))}

    # The coefficient says something of one divergence alone.
    assert read == set(PAIR_LOSSES[name].takes) - {"f_alpha_divergence_coef"}
    unread = unread_settings(PAIR_LOSSES[name], PairSettings(beta=0.1, **changed))
    assert set(unread) == set(changed) - read


# At log-ratios c = [log 2, log 4] and r = [log 1/2, log 2], so u = [2, 4] and [1/2, 2].
RATIOS = pairs_with([math.log(2), math.log(4)], [-math.log(2), math.log(2)])


@pytest.mark.parametrize(
    ("settings", "margins"),
    [
        ({"f_divergence_type": "reverse_kl"}, [2 * math.log(2), math.log(2)]),
        # -1 over u is -1/2 and -1/4 of the chosen, -2 and -1/2 of the rejected ones
        ({"f_divergence_type": "forward_kl"}, [1.5, 0.25]),
        # u over 1 + u is 2/3 and 4/5, and of the rejected ones 1/3 and 2/3
        ({"f_divergence_type": "js_divergence"}, [math.log(2), math.log(6 / 5)]),
        # -2 over the root of u
        ({"f_divergence_type": "alpha_divergence"}, [2 * (2**0.5 - 0.5**0.5), 2 * (0.5**0.5 - 0.5)]),
        # at 1 the forward KL
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}, [1.5, 0.25]),
    ],
)
def test_margins_under_other_divergences_match_numbers_worked_by_hand(settings, margins):
    expected = torch.tensor([log1p(exp(-margin / 2)) for margin in margins], dtype=torch.float64)

    torch.testing.assert_close(losses_of("sigmoid", RATIOS, **settings), expected)


def test_the_alpha_divergence_tends_to_the_reverse_kl():
    near = losses_of("sigmoid", RATIOS, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1e-7)

    torch.testing.assert_close(near, losses_of("sigmoid", RATIOS), rtol=1e-6, atol=0)


DIVERGENCES = ["forward_kl", "js_divergence", "alpha_divergence"]
"""Those besides the usual one."""


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "name", sorted(name for name, kind in PAIR_LOSSES.items() if "f_divergence_type" in kind.takes)
)
def test_gradients_under_other_divergences_are_those_of_finite_differences(name, divergence):
    logps = pairs_with([0.7, -0.4], [-0.3, 0.9], tokens=2)
    policy = [logps.policy_chosen, logps.policy_rejected]

    def losses(chosen, rejected):
        changed = logps._replace(policy_chosen=chosen, policy_rejected=rejected)
        return losses_of(name, changed, f_divergence_type=divergence)

    assert torch.autograd.gradcheck(losses, policy)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_other_divergences_stay_finite_far_from_the_reference(divergence):
    logps = PairLogps(*(tensor.float() for tensor in pairs_with([-1e4, 1e4], [1e4, -1e4])))

    for name in ("sigmoid", "ipo"):
        losses = losses_of(name, logps, f_divergence_type=divergence, ipo_averages=False)
        assert losses.isfinite().all()


@pytest.mark.parametrize("name", ["nca_pair", "apo_zero", "bco_pair", "kto_pair", "sft", ["sigmoid", "bco_pair"]])
def test_a_loss_that_reads_more_than_margins_refuses_another_divergence(name):
    kind = pair_loss_kind(name)

    with pytest.raises(ValueError, match="expected f_divergence_type reverse_kl, found js_divergence"):
        check_pair_loss(kind, PairSettings(beta=0.1, f_divergence_type="js_divergence"))


def test_likelihood_beside_a_loss_of_margins_takes_any_divergence():
    kind = pair_loss_kind(["sigmoid", "sft"])

    check_pair_loss(kind, PairSettings(beta=0.1, f_divergence_type="js_divergence"))


def test_several_losses_are_their_weighted_sum():
    # sigmoid: [log1p(e^-3), log1p(e)], bco_pair as above, sft: [1, 1]; the weights are those of MPO
    kind = pair_loss_kind(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])

    losses = kind.function(PAIRS, settings_of("bco_pair"))

    expected = [
        0.8 * log1p(exp(-3)) + 0.2 * (log1p(exp(-1.75)) + log1p(exp(-1.25))) + 1,
        0.8 * log1p(exp(1)) + 0.2 * (log1p(exp(0.75)) + log1p(exp(0.25))) + 1,
    ]
    torch.testing.assert_close(losses, torch.tensor(expected))
    assert kind.follows_rewards
    assert kind.needs_reference
    assert {"label_smoothing", "reward_shift"} <= set(kind.takes)


def test_gradients_of_several_losses_are_those_of_finite_differences():
    kind, settings = pair_loss_kind(["sigmoid", "kto_pair", "sft"], [0.5, 2.0, 1.0]), settings_of("", detach_kl=False)
    logps = pairs_with([0.7, -0.4], [-0.3, 0.9], tokens=2)

    def losses(chosen, rejected):
        return kind.function(logps._replace(policy_chosen=chosen, policy_rejected=rejected), settings)

    assert torch.autograd.gradcheck(losses, [logps.policy_chosen, logps.policy_rejected])


def test_losses_per_completion_count_as_their_mean_among_several():
    mixed = pair_loss_kind(["kto_pair", "kto_pair"], [0.5, 0.5]).function(PAIRS, settings_of("kto_pair"))

    torch.testing.assert_close(mixed.mean(), losses_of("kto_pair").mean())
    assert mixed.shape == (2,)


def test_one_loss_may_be_weighted_too():
    kind = pair_loss_kind("hinge", [3.0])

    torch.testing.assert_close(kind.function(PAIRS, settings_of("hinge")), 3 * losses_of("hinge"))


@pytest.mark.parametrize(
    ("names", "weights"),
    [([], None), (["sigmoid", "sft"], [1.0]), (["sigmoid"], [-1.0]), (["sigmoid", "sft"], [0.0, 0.0]), ("ipo", [])],
)
def test_weights_of_other_losses_are_refused(names, weights):
    with pytest.raises(ValueError, match="expected loss_type as one name or several, and as many loss_weights"):
        pair_loss_kind(names, weights)


def test_settings_at_their_default_are_not_told_as_unread():
    assert unread_settings(PAIR_LOSSES["hinge"], PairSettings(beta=0.3, label_smoothing=0)) == ()


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_the_losses_of_the_table_pass_the_check_before_training(name):
    assert PAIR_LOSSES[name].paper.startswith("https://arxiv.org/abs/")
    check_pair_loss(PAIR_LOSSES[name], PairSettings(beta=0.1, label_smoothing=0.1))


def test_the_check_before_training_finds_settings_that_a_loss_refuses():
    with pytest.raises(ValueError, match="label_smoothing above 0"):
        check_pair_loss(PAIR_LOSSES["exo_pair"], PairSettings(beta=0.1))
