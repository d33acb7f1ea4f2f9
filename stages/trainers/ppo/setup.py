"""What a PPO trainer is made of: its arguments checked, the reference, the columns of a dataset."""

import inspect
import logging
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.models.frozen import AdapterOff, FrozenReference, FrozenWeights, SeparateModel, disable_dropout
from stages.models.shared_layers import create_reference_model
from stages.models.value_head import PreTrainedModelWithValueHead
from stages.trainers.ppo.config import PPOConfig

logger = logging.getLogger(__name__)

_LOGGED_COLUMNS = ("label", "query", "response")
"""Columns that a model doesn't read and that scores and logs do."""


def check_arguments(  # noqa: PLR0917 - the order of the trainer
    config: Any,
    model: Any,
    ref_model: Any,
    tokenizer: Any,
    num_shared_layers: int | None,
    optimizer: Any,
    lr_scheduler: Any,
) -> None:
    """See that a trainer can be made of its arguments.

    Raises:
        ValueError: an argument is of another kind, or two contradict each other.
    """
    if not isinstance(config, PPOConfig):
        raise ValueError(f"expected config as a PPOConfig, found a {type(config).__name__}")
    # What was set since it was made is checked, and what follows from it is filled, as at construction.
    config.__post_init__()
    if not isinstance(model, PreTrainedModelWithValueHead):
        raise ValueError(
            f"expected a model with a value head, found a {type(model).__name__}; make one with "
            "AutoModelForCausalLMWithValueHead.from_pretrained, or that for Seq2SeqLM"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"expected a tokenizer of transformers, found a {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "expected a tokenizer with a pad token, found none; set pad_token, to its eos_token if need be"
        )
    if lr_scheduler is not None and (
        not isinstance(lr_scheduler, torch.optim.lr_scheduler.LRScheduler) or lr_scheduler.optimizer is not optimizer
    ):
        raise ValueError(
            "expected lr_scheduler as a schedule of torch for the optimizer given, found a "
            f"{type(lr_scheduler).__name__}"
        )
    if ref_model is not None:
        _check_reference(model, ref_model, num_shared_layers)


def _check_reference(model: PreTrainedModelWithValueHead, ref_model: Any, num_shared_layers: int | None) -> None:
    if not isinstance(ref_model, PreTrainedModelWithValueHead | PreTrainedModel):
        raise ValueError(
            f"expected ref_model as a model with or without a value head, found {type(ref_model).__name__}"
        )
    if ref_model is model or ref_model is model.pretrained_model:
        raise ValueError("expected ref_model as another model or None, found the policy; None copies it")
    if num_shared_layers is not None:
        raise ValueError(
            f"expected num_shared_layers only without ref_model, found {num_shared_layers} and a "
            f"{type(ref_model).__name__}; leave one out"
        )
    kinds = [bool(getattr(each.config, "is_encoder_decoder", False)) for each in (model, ref_model)]
    sizes = [each.config.get_text_config().vocab_size for each in (model, ref_model)]
    if kinds[0] != kinds[1] or sizes[0] != sizes[1]:
        raise ValueError(
            f"expected a reference of the policy's kind and vocabulary, found {sizes[1]} tokens for its {sizes[0]}, "
            f"and is_encoder_decoder {kinds[1]} for its {kinds[0]}"
        )


def choose_reference(
    model: PreTrainedModelWithValueHead,
    ref_model: PreTrainedModelWithValueHead | PreTrainedModel | None,
    *,
    num_shared_layers: int | None,
    device: torch.device,
) -> FrozenReference:
    """The reference: the model given, else the policy without its adapter, or as it is now.

    Args:
        model: the policy.
        ref_model: a model of its own, or None.
        num_shared_layers: layers that a copy shares with the policy; None for none.
        device: where the reference is needed.

    Raises:
        ValueError: layers can't be shared.
    """
    if ref_model is None and model.is_peft_model and num_shared_layers is None:
        # An adapter that was trained before is part of what the policy is compared with.
        kind = AdapterOff if model.has_new_adapter else FrozenWeights
        return kind(lambda: model.pretrained_model)
    if ref_model is None:
        ref_model = create_reference_model(model, num_shared_layers)
    elif not isinstance(ref_model, PreTrainedModelWithValueHead):
        # Its head is never asked, but then all passes are of one kind.
        ref_model = type(model)(ref_model)
    return SeparateModel(ref_model.to(device))


def without_dropout(model: nn.Module) -> None:
    """Switch off all dropout, that of adapters and of the value head too.

    A token's ratio compares two passes, so noise in either would be taken for a change of the policy.
    """
    disable_dropout(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def used_columns(dataset: Any, model: PreTrainedModelWithValueHead) -> Any:
    """A dataset without the columns that neither the model nor a log reads; one that isn't of `datasets` as it is."""
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    read = {*inspect.signature(model.get_base_model().forward).parameters, *_LOGGED_COLUMNS}
    unused = [name for name in dataset.column_names if name not in read]
    if dataset.column_names and len(unused) == len(dataset.column_names):
        raise ValueError(
            f"expected a column input_ids, or one that a log reads ({', '.join(_LOGGED_COLUMNS)}), found "
            f"{', '.join(unused)}; rename one, or keep them by remove_unused_columns=False"
        )
    if unused:
        logger.info("left out the columns %s; remove_unused_columns=False keeps them", ", ".join(unused))
    return dataset.remove_columns(unused)
