"""Adapters of peft: what lies on a model, and laying a new one on it."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_peft_model(model: Any) -> bool:
    """Whether `model` carries an adapter of peft."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def is_quantised(model: Any) -> bool:
    """Whether the weights of `model` have 4 or 8 bits."""
    return getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)


def with_adapter(model: Any, peft_config: Any, *, computes_in_bf16: bool = False) -> Any:
    """`model` with a new adapter, which alone is trainable.

    An adapter that it comes with is merged first, so that what that learned becomes part of the base, and so of a
    reference with the new adapter off.

    Args:
        model: model of transformers, or one of peft.
        peft_config: configuration of the new adapter.
        computes_in_bf16: whether passes are made in bfloat16, for which adapters on weights of 4 bits have to be in it.
    """
    # peft is slow to import, and only adapters need it.
    from peft import get_peft_model, prepare_model_for_kbit_training

    if is_peft_model(model):
        model = model.merge_and_unload()
    if is_quantised(model):
        keep_differentiable(model)
        # Whoever trains switches checkpointing of activations on, by the name that it has in transformers 5.
        model = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call] # peft
            model, use_gradient_checkpointing=False
        )
    with quiet_about_checkpointing():
        model = get_peft_model(model, adapter_config(peft_config))
    if computes_in_bf16 and getattr(model, "is_loaded_in_4bit", False):
        _recast(model)
    return model


def keep_differentiable(model: Any) -> None:
    """Keep layers of 4 bits on a CPU in the layout that gradients can pass through.

    Where the CPU has instructions for bfloat16, bitsandbytes repacks such a layer in its first pass in evaluation
    mode, which may be that of the reference, and computes without gradients from then on, also in training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def quiet_about_checkpointing() -> Iterator[None]:
    """Without the warning that peft 0.21 asks transformers 5 under a name that has changed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        yield


def _recast(model: nn.Module) -> None:
    """Adapters and embeddings in bfloat16, norms in float32, as computing with 4-bit weights needs it."""
    for name, module in model.named_modules():
        if "norm" in name:
            module.to(torch.float32)
        elif "lora_" in name or "lm_head" in name or "embed_tokens" in name:
            module.to(torch.bfloat16)


def adapter_config(given: Any) -> Any:
    """The configuration of an adapter, which may be given as the dict that `to_dict` of one makes.

    Args:
        given: a configuration of peft, a mapping with `peft_type` and its arguments, or None.

    Raises:
        ValueError: it is neither, or the mapping names a type or arguments that peft doesn't know.
    """
    if given is None or hasattr(given, "peft_type"):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"peft_config: expected a configuration of peft, such as LoraConfig(...), or a dict of one, found "
            f"{type(given).__name__} {given!r:.60}"
        )
    # peft is slow to import, and only adapters need it.
    from peft import get_peft_config
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    kind = getattr(given.get("peft_type"), "value", given.get("peft_type"))
    if kind not in known:
        raise ValueError(
            f"peft_config: expected a dict with peft_type as one of {', '.join(known)}, found {kind!r}; or give a "
            "configuration of peft, such as LoraConfig(...)"
        )
    try:
        return get_peft_config({**given, "peft_type": kind})
    except TypeError as error:
        raise ValueError(f"peft_config: {error}; expected arguments of peft's {kind}") from None
