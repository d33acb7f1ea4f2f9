"""Losses of PPO against numbers worked out by hand and against properties that follow from their definition."""

import math

import pytest
import torch

from stages.losses.ppo import (
    compute_advantages,
    entropy_from_logits,
    kl_penalties,
    masked_mean,
    masked_var,
    masked_whiten,
    ppo_loss,
    token_rewards,
)


def test_masked_statistics_of_numbers_worked_by_hand():
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, -50.0, -9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])

    # 1, 2 and 6: mean 3, squared deviations 4 + 1 + 9 = 14
    assert masked_mean(values, mask).item() == 3.0
    assert masked_var(values, mask).item() == 7.0
    assert masked_var(values, mask, unbiased=False).item() == pytest.approx(14 / 3)
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 6.0]
    whitened = masked_whiten(values, mask)[mask.bool()]
    torch.testing.assert_close(whitened, torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(7))
    torch.testing.assert_close(masked_whiten(values, mask, shift_mean=False)[mask.bool()], whitened + 3.0)


def test_p8_the_variance_of_a_single_value_is_zero_and_whitening_it_gives_numbers():
    values, mask = torch.tensor([[4.0, 9.0]]), torch.tensor([[1, 0]])

    assert masked_var(values, mask).item() == 0.0
    assert masked_whiten(values, mask).isfinite().all()


def test_processes_whiten_their_values_together():
    values, mask = torch.randn(4, 5), torch.ones(4, 5, dtype=torch.long)
    halves = values.split(2)
    sums = {}

    def add_up(tensor):  # what the two processes give, as each of them gives it
        sums.setdefault(tensor.shape, []).append(tensor)
        return tensor

    for half in halves:
        masked_whiten(half, mask[:2], add_up=add_up)
    total = torch.stack(sums[torch.Size([2])]).sum(0)
    variance = ((values - total[0] / total[1]).square()).sum()

    found = [
        masked_whiten(half, mask[:2], add_up=lambda tensor: total if tensor.dim() else variance) for half in halves
    ]

    torch.testing.assert_close(torch.cat(found), masked_whiten(values, mask))


def test_entropy_of_even_odds_is_the_logarithm_of_their_number():
    logits = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, -1e4, -1e4]])

    torch.testing.assert_close(entropy_from_logits(logits), torch.tensor([math.log(4), math.log(2)]))


def test_penalties_of_numbers_worked_by_hand():
    logps, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.5]])

    assert kl_penalties(logps, reference, kind="kl").tolist() == [[2.0, -0.5]]
    assert kl_penalties(logps, reference, kind="abs").tolist() == [[2.0, 0.5]]
    assert kl_penalties(logps, reference, kind="mse").tolist() == [[2.0, 0.125]]


def test_the_full_penalty_is_the_divergence_of_the_two_distributions():
    policy, reference = torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([[[0.25, 0.5, 0.25]]])

    found = kl_penalties(policy.log(), reference.log(), kind="full")

    # 0.5 log 2 + 0.5 log 1, and nothing for the token of probability 0
    torch.testing.assert_close(found, torch.tensor([[0.5 * math.log(2)]]))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [("l2", (1, 2), "found 'l2'"), ("full", (1, 2), "with 3 dimensions"), ("kl", (1, 2, 3), "with 2 dimensions")],
)
def test_refuses_penalties_of_another_kind_or_shape(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        kl_penalties(torch.zeros(shape), torch.zeros(shape), kind=kind)


def test_the_score_stands_at_the_last_kept_token():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0]])

    found = token_rewards(torch.tensor([5.0, 7.0]), torch.ones(2, 4), mask, kl_coef=0.5)

    assert found.rewards.tolist() == [[-0.5, -0.5, 4.5, -0.5], [-0.5, -0.5, 6.5, -0.5]]
    assert (found.non_score_rewards == -0.5).all()
    with pytest.raises(ValueError, match="none in row 1"):
        token_rewards(torch.ones(2), torch.ones(2, 2), torch.tensor([[1, 0], [0, 0]]), kl_coef=0.5)


def test_advantages_of_numbers_worked_by_hand():
    # gamma 0.5, lam 0.5, from the right: delta = 8 - 2 = 6, A = 6; then delta = 1 + 0.5 * 2 - 4 = -2, A = -2 + 0.25 * 6
    found = compute_advantages(
        torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0, 8.0]]), torch.ones(1, 2), gamma=0.5, lam=0.5
    )

    assert found.returns.tolist() == [[3.5, 8.0]]
    # -0.5 and 6 have the deviations -3.25 and 3.25, of variance 2 * 3.25 ** 2
    torch.testing.assert_close(found.advantages, torch.tensor([[-1.0, 1.0]]) / math.sqrt(2))


def test_p13_a_hole_in_the_mask_changes_nothing():
    values, rewards = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, -1.0, 2.0]])
    spread = torch.tensor([[1, 0, 0, 1, 1]])
    settings = {"gamma": 0.9, "lam": 0.8, "whiten_rewards": True}

    whole = compute_advantages(values, rewards, torch.ones(1, 3), **settings)
    holed = compute_advantages(
        torch.tensor([[1.0, 99.0, 99.0, 2.0, 3.0]]), torch.tensor([[0.5, 99.0, 99.0, -1.0, 2.0]]), spread, **settings
    )

    for name in ("values", "advantages", "returns"):
        torch.testing.assert_close(getattr(holed, name)[spread.bool()], getattr(whole, name).flatten())
        assert (getattr(holed, name)[spread == 0] == 0).all()


def test_whitened_rewards_leave_no_reward_behind_a_response():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    rewards = torch.tensor([[3.0, 5.0, 0.0, 0.0], [4.0, 1.0, 2.0, 7.0]])

    found = compute_advantages(torch.zeros(2, 4), rewards, mask, gamma=1.0, lam=1.0, whiten_rewards=True)

    # the last return of a row is its last whitened reward, whatever padding follows
    whitened = masked_whiten(rewards, mask, shift_mean=False)
    torch.testing.assert_close(found.returns[0, 1], whitened[0, 1])


def test_p8_a_single_token_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least two response tokens in a batch, found 1"):
        compute_advantages(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[0, 1]]), gamma=1.0, lam=0.95)


def loss_of(logps, values, **changes):
    old = torch.zeros_like(logps)
    settings = {"old_logps": old, "old_values": old, "advantages": torch.ones_like(old), "returns": old}
    settings |= {"mask": torch.ones_like(old), "cliprange": 0.2, "cliprange_value": 0.5}
    return ppo_loss(logps, values, **{**settings, **changes})


def test_losses_of_numbers_worked_by_hand():
    # ratios 1.5 and 1: -1.2 (clipped) and -1; values 2 and 0.1 with returns 0: 4 (the clipped one has 0.25) and 0.01
    found = loss_of(torch.tensor([[math.log(1.5), 0.0]]), torch.tensor([[2.0, 0.1]]))

    assert found.policy.item() == pytest.approx(-1.1)
    assert found.value.item() == pytest.approx(0.25 * 4.01)
    assert found.policy_clip_share.item() == 0.5
    assert found.value_clip_share.item() == 0.0
    torch.testing.assert_close(found.ratios, torch.tensor([[1.5, 1.0]]))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "learns"),
    [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False)],
)
def test_a_token_stops_counting_once_it_went_far_enough_in_the_right_direction(log_ratio, advantage, learns):
    logps = torch.full((1, 1), log_ratio, requires_grad=True)

    loss_of(logps, torch.zeros(1, 1), advantages=torch.full((1, 1), advantage)).policy.backward()

    assert bool(logps.grad != 0) is learns


def test_what_the_mask_leaves_out_has_no_gradient():
    logps, values = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)

    found = loss_of(logps, values, mask=torch.tensor([[1, 0, 1]]))
    (found.policy + found.value).backward()

    assert logps.grad[0, 1] == values.grad[0, 1] == 0
    assert (logps.grad[0, ::2] < 0).all()
    assert (values.grad[0, ::2] > 0).all()


def test_names_the_shapes_that_differ():
    with pytest.raises(ValueError, match=r"seven tensors of one shape .* \(1, 2\)"):
        loss_of(torch.zeros(1, 2), torch.zeros(1, 3))
