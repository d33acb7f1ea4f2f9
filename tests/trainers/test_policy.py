"""The model that is trained: how it is made anew."""

from functools import partial

import pytest

from stages.trainers.core.policy import prepared_init


class Maker:
    def plain(self):
        return "made"

    def with_trial(self, trial):
        return f"made for {trial}"


def plain(*, size=None):
    return "made"


def with_trial(trial, size=None):
    return f"made for {trial}"


@pytest.mark.parametrize("model_init", [plain, Maker().plain, partial(plain), lambda: "made"])
def test_a_model_init_without_argument_is_called_without_the_trial(model_init):
    assert prepared_init(model_init, str.upper)("a trial") == "MADE"


@pytest.mark.parametrize(
    "model_init", [Maker().with_trial, partial(with_trial, size=3), lambda trial: f"made for {trial}"]
)
def test_a_model_init_with_an_argument_is_given_the_trial(model_init):
    assert prepared_init(model_init, str.upper)("a trial") == "MADE FOR A TRIAL"
