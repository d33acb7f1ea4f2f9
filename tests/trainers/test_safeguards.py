"""What stops a run before it spoils the policy."""

import math

import pytest
import torch
from datasets import Dataset

from stages.trainers.core.safeguards import STEPS_WITHOUT_GRADIENT, GradientWatch, refuse_non_finite
from tests.trainers.tiny import dpo_trainer, lines, raw_pairs


def test_rows_that_are_not_finite_are_named_up_to_five():
    logps = torch.full((8,), torch.nan)
    logps[0] = -1.0

    with pytest.raises(ValueError, match="step 3: .* found others in b, c, d, e, f; the weights"):
        refuse_non_finite({"row_id": list("abcdefgh")}, logps, torch.zeros(8), step=3)
    with pytest.raises(ValueError, match="found others in 1 of the batch"):
        refuse_non_finite({}, torch.zeros(2), torch.tensor([0.0, -torch.inf]), step=0)

    with pytest.raises(ValueError, match="found others in 7, 9; the weights"):
        refuse_non_finite({"row_id": torch.tensor([7, 8, 9])}, torch.tensor([torch.nan, 0.0, torch.nan]), step=0)

    refuse_non_finite({}, torch.zeros(2), torch.zeros(2), step=0)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(norm):
    with pytest.raises(ValueError, match="expected a finite gradient"):
        GradientWatch().look(norm, step=1)


def test_a_policy_that_never_gets_a_gradient_is_refused_after_some_steps():
    watch = GradientWatch()
    for step in range(STEPS_WITHOUT_GRADIENT - 1):
        watch.look(0.0, step=step)

    with pytest.raises(ValueError, match="found no gradient in the first 10 steps"):
        watch.look(0.0, step=STEPS_WITHOUT_GRADIENT - 1)


def test_a_policy_that_has_learned_all_may_go_on_without_gradient(tmp_path):
    arguments = {"loss_type": "hinge", "beta": 1.0, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 30}
    rows = Dataset.from_list(raw_pairs(4))
    trainer = dpo_trainer(tmp_path, rows=rows, max_steps=30, **arguments)
    trainer.train()

    resumed = dpo_trainer(tmp_path, rows=rows, max_steps=45, **arguments)
    resumed.train(resume_from_checkpoint=True)

    assert [line["loss"] for line in lines(trainer)][-STEPS_WITHOUT_GRADIENT:] == [0.0] * STEPS_WITHOUT_GRADIENT
    assert [line["grad_norm"] for line in lines(resumed)][-15:] == [0.0] * 15
