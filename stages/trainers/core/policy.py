"""The model that is trained: loading it, laying an adapter on it, making it ready."""

import logging
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from stages.models.adapters import adapter_config, is_peft_model, is_quantised, keep_differentiable, with_adapter
from stages.models.frozen import disable_dropout
from stages.models.loading import refused_arguments
from stages.trainers.core.given import name_of

logger = logging.getLogger(__name__)


def load_model(model: Any, init_kwargs: Mapping[str, Any] | None, *, name: str) -> Any:
    """`model` itself, or the one that a string or a path names.

    Args:
        model: a model, a folder or a repository.
        init_kwargs: arguments of `from_pretrained`; only for a model given by name.
        name: argument that the model was given as, for messages.

    Raises:
        ValueError: it is no model, arguments come with one that is there already or are none that it takes, or
            `dtype` names no type of torch.
    """
    source = name_of(model)
    if source is None:
        if init_kwargs:
            raise ValueError(
                f"expected {name}_init_kwargs only with {name} as a name to load, found a {type(model).__name__}; "
                "give these arguments where you load it"
            )
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{name}: expected a model of torch, or a folder or repository as text or a path, found "
                f"{type(model).__name__} {model!r:.60}"
            )
        return model
    kwargs = dict(init_kwargs or {})
    dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", "auto"))
    config = AutoConfig.from_pretrained(source, **{key: kwargs[key] for key in _CONFIG_KWARGS if key in kwargs})
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with refused_arguments(f"{name}_init_kwargs"):
        return loader.from_pretrained(source, dtype=_torch_type(dtype, name), use_safetensors=True, **kwargs)


_CONFIG_KWARGS = ("revision", "trust_remote_code", "cache_dir", "token", "local_files_only", "subfolder")


def _torch_type(dtype: Any, name: str) -> Any:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found in ("auto", None) and dtype in ("auto", None):
        return "auto"
    if isinstance(found, torch.dtype):
        return found
    raise ValueError(f'expected {name}_init_kwargs["dtype"] as "auto" or a type of torch, found {dtype!r}')


def prepare_policy(model: Any, *, peft_config: Any, args: Any) -> Any:
    """`model` with an adapter laid on it if `peft_config` says so, ready to be trained.

    Args:
        model: the model as loaded.
        peft_config: configuration of the adapter, or a dict of it; None trains what is trainable in `model`.
        args: for dropout, precision and checkpointing of activations.

    Raises:
        ValueError: the weights have 4 or 8 bits, so that they can't be trained, and there is no adapter.
    """
    peft_config = adapter_config(peft_config)
    if args.disable_dropout:
        disable_dropout(model)
    config = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0.0) == 0.0:
        logger.warning("router_aux_loss_coef is 0, so output_router_logits has no effect on the loss; raise it")
    if is_quantised(model):
        if peft_config is None and not is_peft_model(model):
            raise ValueError(
                "expected peft_config with a model of 4 or 8 bits, whose weights can't be trained, found none; "
                "give one, or load the model in full"
            )
        keep_differentiable(model)
    if peft_config is not None:
        model = with_adapter(model, peft_config, computes_in_bf16=args.bf16)
    uses_reentrant = (args.activation_checkpointing_kwargs or {}).get("use_reentrant", False)
    if args.activation_checkpointing and uses_reentrant and hasattr(model, "enable_input_require_grads"):
        # Reentrant checkpointing gives no gradients to a block none of whose inputs asks for one.
        model.enable_input_require_grads()
    return model


def prepared_init(model_init: Callable[..., Any], prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`model_init` followed by `prepare`, called with the trial of a hyperparameter search or None."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
    takes_trial = any(argument.kind in positional for argument in signature(model_init).parameters.values())

    def init(trial: Any) -> Any:
        return prepare(model_init(trial) if takes_trial else model_init())

    return init


def is_encoder_decoder(model: Any, given: bool | None) -> bool:
    """Whether prompts and completions go to two halves of the model.

    Args:
        model: the model, or None if it is made later.
        given: what the arguments of the trainer say; only of a model that is made later they are believed.
    """
    if model is None:
        return bool(given)
    found = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if given is not None and given != found:
        logger.warning("is_encoder_decoder=%s: the model's own config says %s, which is taken", given, found)
    return found


def check_made(model: Any, *, is_encoder_decoder: bool) -> None:
    """Raise ValueError unless a model that `model_init` made is of the kind that rows were encoded for."""
    found = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if found != is_encoder_decoder:
        raise ValueError(
            f"is_encoder_decoder: expected {found}, for such a model is what model_init makes, found "
            f"{is_encoder_decoder}; set it in args, for rows are encoded before there is a model"
        )
