"""SFT loss against numbers worked out by hand and against properties that follow from its definition."""

import pytest
import torch

from stages.losses.sft import sft_loss


def test_matches_numbers_worked_by_hand():
    # rows of 4 and 1 tokens: (8 + 2 * 1) / 5 = 2
    result = sft_loss(torch.tensor([-8.0, -1.0]), torch.tensor([4, 1]), weights=torch.tensor([1.0, 2.0]))

    torch.testing.assert_close(result.losses, torch.tensor([8.0, 2.0]))
    torch.testing.assert_close(result.loss, torch.tensor(2.0))


def test_each_token_counts_alike_however_rows_are_cut_into_batches():
    logps, num_tokens = torch.tensor([-8.0, -1.0, -3.0]), torch.tensor([4, 1, 5])

    parts = [sft_loss(logps[part], num_tokens[part], num_tokens_in_mean=10).loss for part in (slice(1), slice(1, 3))]

    torch.testing.assert_close(sum(parts), sft_loss(logps, num_tokens).loss)


def test_pulls_the_log_probability_of_each_token_up():
    logps = torch.zeros(2, requires_grad=True)

    sft_loss(logps, torch.tensor([1, 3])).loss.backward()

    torch.testing.assert_close(logps.grad, torch.tensor([-0.25, -0.25]))


@pytest.mark.parametrize("number", [None, 0, torch.tensor(0)])
def test_is_0_without_a_token_to_learn(number):
    nothing = torch.zeros(2, dtype=torch.long)

    assert sft_loss(torch.zeros(2), nothing, num_tokens_in_mean=number).loss == 0.0


def test_names_the_tensors_whose_shapes_differ():
    with pytest.raises(ValueError, match=r"'weights': \(3,\)"):
        sft_loss(torch.zeros(2), torch.ones(2), weights=torch.ones(3))
