"""What stops a run before it spoils the policy."""

import math

import pytest
import torch

from stages.trainers.safeguards import STEPS_WITHOUT_GRADIENT, GradientWatch, refuse_non_finite


def test_rows_that_are_not_finite_are_named_up_to_five():
    logps = torch.full((8,), torch.nan)
    logps[0] = -1.0

    with pytest.raises(ValueError, match="step 3: .* found others in b, c, d, e, f; the weights"):
        refuse_non_finite({"row_id": list("abcdefgh")}, logps, torch.zeros(8), step=3)
    with pytest.raises(ValueError, match="found others in 1 of the batch"):
        refuse_non_finite({}, torch.zeros(2), torch.tensor([0.0, -torch.inf]), step=0)

    refuse_non_finite({}, torch.zeros(2), torch.zeros(2), step=0)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(norm):
    with pytest.raises(ValueError, match="expected a finite gradient"):
        GradientWatch().look(norm, step=1)


def test_steps_without_gradient_are_borne_unless_many_follow_on_each_other():
    watch = GradientWatch()
    for norm in [0.0] * (STEPS_WITHOUT_GRADIENT - 1) + [1.0] + [0.0] * (STEPS_WITHOUT_GRADIENT - 1):
        watch.look(norm, step=1)

    with pytest.raises(ValueError, match="found no gradient in 10 steps"):
        watch.look(0.0, step=1)
