"""The device that models run on."""

import pytest
import torch

from stages.models.devices import default_device, place


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")

    assert default_device() == torch.device("cpu")


def test_without_it_the_machines_own_is_taken(monkeypatch):
    monkeypatch.delenv("PLUMBLINE_DEVICE", raising=False)

    assert default_device() == (torch.accelerator.current_accelerator() or torch.device("cpu"))


def test_a_device_that_the_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "abacus")

    with pytest.raises(ValueError, match="PLUMBLINE_DEVICE: expected a device of this machine, found 'abacus'"):
        default_device()


def test_a_model_is_moved_and_given_back():
    model = torch.nn.Linear(2, 2)

    assert place(model, torch.device("cpu")) is model
