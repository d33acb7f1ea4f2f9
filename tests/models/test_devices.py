"""The device that models run on."""

import pytest
import torch

from stages.models.devices import default_device, place


def use_cuda_build(monkeypatch, *, has_gpu):
    """Let torch answer as its build for CUDA does, which knows of CUDA also on a machine without a GPU."""

    def current_accelerator(check_available=False):
        return torch.device("cuda") if has_gpu or not check_available else None

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")

    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_without_it_the_machines_own_is_taken_if_it_is_there(monkeypatch, has_gpu, device):
    monkeypatch.delenv("PLUMBLINE_DEVICE", raising=False)
    use_cuda_build(monkeypatch, has_gpu=has_gpu)

    assert default_device() == torch.device(device)


def test_a_device_that_the_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "abacus")

    with pytest.raises(ValueError, match="PLUMBLINE_DEVICE: expected a device of this machine, found 'abacus'"):
        default_device()


def test_a_model_is_moved_and_given_back():
    model = torch.nn.Linear(2, 2)

    assert place(model, torch.device("cpu")) is model
