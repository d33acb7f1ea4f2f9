"""The frozen model that a policy is compared with: another model, or the policy as it was.

Each kind gives, as a context, the model to run for a reference pass; on leaving it the policy is as before.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from stages.models.adapters import is_peft_model
from stages.models.modes import evaluating


class FrozenReference(Protocol):
    """Gives the reference model for the length of a pass."""

    def active(self) -> AbstractContextManager[nn.Module]:
        """A context whose value is the model, in evaluation mode."""


class SeparateModel:
    """A model of its own, frozen.

    Args:
        model: the model; set to evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The model as it is."""
        yield self.model


class PolicyItself:
    """The policy as it is at the time, which is the reference only until training begins.

    Args:
        policy: gives the model.
    """

    def __init__(self, policy: Callable[[], nn.Module]) -> None:
        self.policy = policy

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy in evaluation mode."""
        model = self.policy()
        with evaluating(model):
            yield model


class AdapterOff:
    """The policy without its adapter.

    Args:
        policy: gives the PEFT model that is being trained.
    """

    def __init__(self, policy: Callable[[], Any]) -> None:
        self.policy = policy

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with its adapter switched off."""
        model = self.policy()
        with evaluating(model), model.disable_adapter():
            yield model


class NamedAdapter:
    """The policy with another of its adapters switched on.

    Args:
        policy: gives the PEFT model that is being trained.
        name: adapter of the reference.
        policy_name: adapter that is trained.

    Raises:
        ValueError: the policy has no such adapter.
    """

    def __init__(self, policy: Callable[[], Any], *, name: str, policy_name: str) -> None:
        self.policy, self.name, self.policy_name = policy, name, policy_name
        check_adapters(policy(), name, policy_name)
        policy().set_adapter(policy_name)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with the reference's adapter on; only the policy's own stays trainable."""
        model = self.policy()
        model.set_adapter(self.name)
        try:
            with evaluating(model):
                yield model
        finally:
            model.set_adapter(self.policy_name)


class FrozenWeights:
    """The policy with its trainable weights as they were: an adapter trained before is part of the reference.

    Args:
        policy: gives the model that is being trained; its trainable weights are copied now.
    """

    def __init__(self, policy: Callable[[], nn.Module]) -> None:
        self.policy = policy
        self.weights = {
            name: weight.detach().clone() for name, weight in policy().named_parameters() if weight.requires_grad
        }

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with the copies in place of its trainable weights."""
        model = self.policy()
        weights = dict(model.named_parameters())
        current: dict[str, Tensor] = {name: weights[name].data for name in self.weights}
        for name in self.weights:
            # Kept where the policy is, or a training on a device would move the copies there in each pass.
            self.weights[name] = weights[name].data = self.weights[name].to(weights[name].device)
        try:
            with evaluating(model):
                yield model
        finally:
            for name, data in current.items():
                weights[name].data = data


def check_adapters(policy: Any, *names: str) -> None:
    """See that a policy has adapters of these names.

    Raises:
        ValueError: it lacks one.
    """
    if not names:
        return
    if not is_peft_model(policy):
        raise ValueError(
            f"expected a policy with an adapter {names[0]}, found one without any; load it with "
            "PeftModel.from_pretrained, or name no adapter"
        )
    known = list(policy.peft_config)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"expected an adapter {missing[0]}, found {', '.join(known)}; load it with model.load_adapter first"
        )


def frozen_copy(model: nn.Module) -> SeparateModel:
    """A copy of `model` as it is now.

    Raises:
        ValueError: the weights are spread over processes (ZeRO-3), so that there is no whole model to copy.
    """
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ValueError("expected a whole model to copy, found weights that ZeRO-3 has spread; give ref_model")
    return SeparateModel(copy.deepcopy(model))


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to 0, but those inside adapters, which belong to their own config."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
            module.p = 0.0
        for attribute, value in vars(module).items():
            # Attention reads its probability from an attribute, not from a module.
            if "dropout" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)
