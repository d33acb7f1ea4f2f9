"""Losses of the user's own: found by name, checked before training, and added just as CONTRIBUTING.md says."""

import re
import runpy
import sys

import pytest
import torch
import yaml

from stages.contracts.closure import ROOT
from stages.losses.dpo import PAIR_LOSSES, check_pair_loss, pair_loss_kind, unread_settings
from stages.losses.kto import UNPAIRED_LOSSES, check_unpaired_loss, unpaired_loss_kind
from stages.losses.pairs import PairSettings
from stages.trainers.core.loss_terms import LOSS_TERMS, PAIR_TERMS

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
SETTINGS = PairSettings(beta=0.1)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module `my_losses` where Python finds it; forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        # setitem first, so that monkeypatch takes away what the import puts there.
        monkeypatch.setitem(sys.modules, "my_losses", None)
        del sys.modules["my_losses"]
        (tmp_path / "my_losses.py").write_text(source)

    return write


def section_of_contributing():
    text = CONTRIBUTING.read_text()
    return re.search(r"## A loss from outside the repository\n(.*?)\n## ", text, re.DOTALL)[1]


def test_a_loss_from_outside_is_added_as_contributing_says(own_module, tmp_path):
    module, test = re.findall(r"```python\n(.*?)```", section_of_contributing(), re.DOTALL)
    params = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section_of_contributing(), re.DOTALL)[1])
    own_module(module)

    (tmp_path / "test_my_losses.py").write_text(test)
    runpy.run_path(str(tmp_path / "test_my_losses.py"))["test_mine"]()

    kind = pair_loss_kind(params["training"]["dpo"]["loss_type"])
    assert kind.function is sys.modules["my_losses"].mine
    assert kind.paper == "my_losses:mine"


def test_a_loss_of_ones_own_is_taken_to_read_the_reference_and_the_settings(own_module):
    own_module("def mine(logps, settings):\n    return logps.margins()\n")

    kind = pair_loss_kind("my_losses:mine")

    assert kind.needs_reference
    assert not kind.follows_rewards
    assert unread_settings(kind, PairSettings(beta=0.1, cpo_alpha=2.0, reward_shift=torch.tensor(0.0))) == (
        "reward_shift",
    )


def test_a_loss_over_labelled_rows_of_ones_own_is_given_the_kl_estimate(own_module):
    own_module(
        "def mine(policy_logps, reference_logps, labels, kl, *, beta, desirable_weight, undesirable_weight):\n"
        "    return (beta * (policy_logps - reference_logps - kl)).square()\n"
    )

    kind = unpaired_loss_kind("my_losses:mine")

    assert kind.needs_mismatched
    check_unpaired_loss(kind, beta=0.1)


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_a_name_of_the_table_is_its_row(name):
    assert pair_loss_kind(name) is PAIR_LOSSES[name]


@pytest.mark.parametrize("name", sorted(UNPAIRED_LOSSES))
def test_a_name_of_the_table_over_labelled_rows_is_its_row(name):
    assert unpaired_loss_kind(name) is UNPAIRED_LOSSES[name]


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match="loss_type: expected sigmoid, robust, .* found 'sigmiod'; did you mean 'sigmoid'\\?"
    ):
        pair_loss_kind("sigmiod")


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(ValueError, match="expected kto, apo_zero_unpaired or package.module:function, found 'q'$"):
        unpaired_loss_kind("q")


@pytest.mark.parametrize("name", ["no_such_module:mine", ":mine", ".relative:mine"])
def test_a_module_that_cannot_be_imported_is_answered_with_where_to_put_it(name):
    with pytest.raises(ValueError, match=f"for '{re.escape(name)}', found: .*put that folder on PYTHONPATH"):
        pair_loss_kind(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_losses:mime", "expected a function 'mime' in the module 'my_losses', found none; did you mean 'mine'"),
        ("my_losses:number", "expected a function 'number' in the module 'my_losses', found a int"),
        ("my_losses:", "expected a function '' in the module 'my_losses', found none"),
    ],
)
def test_a_missing_function_is_answered_with_the_nearest(own_module, name, message):
    own_module("number = 3\n\n\ndef mine(logps, settings):\n    return logps.margins()\n")

    with pytest.raises(ValueError, match=message):
        pair_loss_kind(name)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("logps.margins().mean()", "found shape (); return one loss per row, without their mean"),
        ("logps.margins()[:2]", "expected a tensor of shape (3 or 6,) from my_losses:mine, found shape (2,)"),
        ("logps.margins()[:, None]", "found shape (3, 1)"),
        ("(logps.margins(), settings.beta)", "found tuple; return the losses of the rows alone"),
        ("logps.margins().detach()", "differentiable in the policy's log-probabilities, found a constant"),
        ("logps.margins().log()", "with finite entries, found ["),
    ],
)
def test_the_check_before_training_finds_what_is_no_loss_per_row(own_module, result, message):
    own_module(f"def mine(logps, settings):\n    return {result}\n")

    with pytest.raises(ValueError, match=re.escape(message)):
        check_pair_loss(pair_loss_kind("my_losses:mine"), SETTINGS)


def test_the_page_on_losses_names_each_with_its_paper():
    lines = (ROOT / "docs" / "losses.md").read_text().splitlines()

    for name, kind in (PAIR_LOSSES | UNPAIRED_LOSSES).items():
        assert any(f"`{name}`" in line for line in lines), name
        assert any(kind.paper in line for line in lines), name
    for term in f"{LOSS_TERMS} {PAIR_TERMS}".split():
        assert any(f"`{term}`" in line or f"`{term}:" in line for line in lines), term
