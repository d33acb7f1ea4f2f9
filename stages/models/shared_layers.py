"""A reference model that shares its lower layers with the policy, so that they stand in memory once."""

import copy
from typing import Any, TypeVar

from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def create_reference_model(model: ModelT, num_shared_layers: int | None = None, pattern: str | None = None) -> ModelT:
    """A frozen copy of `model` in evaluation mode, of which the lower layers are the model's own.

    Args:
        model: the policy, with or without a value head. With shared layers, all of its parameters before the first
            layer that isn't shared are frozen, embeddings included, for the reference must not move.
        num_shared_layers: layers that are shared, from the first one on; 0 shares the embeddings. None shares nothing
            and freezes nothing in the policy.
        pattern: name of a layer with `{layer}` in place of its number, such as "transformer.h.{layer}"; None finds
            the decoder's list of layers.

    Returns:
        The reference. A shared parameter is one object in both models, so that it stays one wherever they are moved.

    Raises:
        ValueError: the weights are spread over processes, the model has an adapter, or it has fewer layers.
    """
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ValueError("expected a whole model to copy, found weights that ZeRO-3 has spread; give ref_model")
    shared: list[nn.Parameter] = []
    if num_shared_layers is not None:
        shared = _parameters_below(model, num_shared_layers, pattern)
        for weight in shared:
            weight.requires_grad = False
    # What the memo holds already is taken as it is and never copied.
    reference = copy.deepcopy(model, {id(weight): weight for weight in shared})
    return reference.requires_grad_(requires_grad=False).eval()


def _parameters_below(model: nn.Module, layer: int, pattern: str | None) -> list[nn.Parameter]:
    """Parameters in their order up to the first one of the given layer."""
    if getattr(model, "is_peft_model", False):
        raise ValueError(
            "expected num_shared_layers None for a model with an adapter, which shares all its layers with its "
            f"reference, found {layer}; leave it out"
        )
    prefix, count = _layers(model) if pattern is None else _matching_layers(model, pattern)
    if not 0 <= layer <= count:
        raise ValueError(f"expected num_shared_layers from 0 to the model's {count} layers, found {layer}")
    names, weights = zip(*model.named_parameters(), strict=True)
    edge = prefix.format(layer=min(layer, count - 1)) + "."
    places = [index for index, name in enumerate(names) if name.startswith(edge)]
    return list(weights[: places[0] if layer < count else places[-1] + 1])


def _layers(model: nn.Module) -> tuple[str, int]:
    """Pattern of the names of the decoder's layers, and their number."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    decoder = inner.get_decoder()
    found = next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)
    if found is None:
        raise ValueError(f"expected a list of layers in {type(decoder).__name__}, found none; give pattern")
    name = next(name for name, module in model.named_modules() if module is found)
    return name + ".{layer}", len(found)


def _matching_layers(model: nn.Module, pattern: str) -> tuple[str, int]:
    start, _, _ = pattern.partition("{layer}")
    found = next((name for name, _ in model.named_modules() if name.endswith(start.rstrip(".")) and name), None)
    module = None if found is None else model.get_submodule(found)
    if not isinstance(module, nn.ModuleList):
        raise ValueError(f"expected pattern to name a list of layers of the model, found {pattern!r}")
    return f"{found}.{{layer}}", len(module)
