"""Models asked in evaluation mode: they are left as they were found, whatever happens."""

import pytest
import torch
from torch import nn

from stages.models.modes import evaluating


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_asked_without_gradients_and_left_in_the_mode_it_was_found_in(is_training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(is_training)

    with evaluating(model):
        answer = model(torch.ones(1, 2))
        mode = model[1].training

    assert not mode
    assert not answer.requires_grad
    assert model[1].training == is_training


def test_a_model_that_fails_is_left_in_the_mode_it_was_found_in():
    model = nn.Dropout().train()

    with pytest.raises(ValueError, match="broken"), evaluating(model):
        raise ValueError("broken")

    assert model.training
