"""Passes of PPO through policy and reference: log-probabilities and values of the tokens of responses."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.models.value_head import PreTrainedModelWithValueHead, ScoredTokens
from stages.trainers.ppo.rollouts import Inputs, trimmed


class TokenPass(NamedTuple):
    """What a model says of the tokens of n responses; 0 where the mask is."""

    logps: Tensor
    """Log-probability of each token, in nats. Shape (n, t)."""
    values: Tensor
    """Expected return before each token. Shape (n, t)."""
    entropies: Tensor | None = None
    """Entropy of the distribution at each token, where it was asked for. Shape (n, t)."""
    logits: Tensor | None = None
    """Logits that predict each token, where they were asked for. Shape (n, t, v)."""


def token_pass(model: Any, inputs: Inputs, *, with_entropies: bool = False) -> TokenPass:
    """Score the tokens that count, without the logits of whole sequences.

    Args:
        model: policy or reference with its value head, as it is or wrapped for training in parallel.
        inputs: rows; columns that are padding in all of them are left out of the pass.
        with_entropies: whether entropies are computed.
    """
    narrow, around = trimmed(inputs)
    found: ScoredTokens = model(
        **narrow.model_inputs, completion_mask=narrow.completion_mask, with_entropies=with_entropies
    )
    entropies = found.logps.entropies
    return TokenPass(
        pad(found.logps.token_logps, around),
        pad(found.values.float().masked_fill(narrow.token_mask == 0, 0.0), around),
        None if entropies is None else pad(entropies, around),
    )


def logits_pass(model: PreTrainedModelWithValueHead, inputs: Inputs) -> TokenPass:
    """Score the tokens that count, and keep the logits, which take v times the memory.

    Args:
        model: policy or reference with its value head.
        inputs: rows.
    """
    kwargs = dict(inputs.model_inputs)
    if "decoder_input_ids" in kwargs:
        targets = kwargs["decoder_input_ids"]
        base = model.get_base_model()
        kwargs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels=targets)
        logits, _, values = model(**kwargs)
    else:
        targets = kwargs["input_ids"][:, 1:]
        logits, _, values = model(**kwargs)
        logits, values = logits[:, :-1], values[:, :-1]
    logps = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    is_out = inputs.token_mask == 0
    return TokenPass(logps.masked_fill(is_out, 0.0), values.float().masked_fill(is_out, 0.0), logits=logits)


def joined(passes: list[TokenPass]) -> TokenPass:
    """Passes over parts of a batch as one."""
    columns = [None if part[0] is None else torch.cat(part) for part in zip(*passes, strict=True)]
    return TokenPass(*columns)  # type: ignore[arg-type] # the first two are never None
