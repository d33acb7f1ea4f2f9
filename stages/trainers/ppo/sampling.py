"""Sampling of responses for PPO, through the model's own `generate`."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.models.generation import stop_ids
from stages.models.modes import evaluating
from stages.models.value_head import PreTrainedModelWithValueHead
from stages.rows.batching import padded

LengthSampler = Callable[[], int]


def sample_one(
    model: PreTrainedModelWithValueHead,
    query: Tensor,
    *,
    length_sampler: LengthSampler | None,
    return_prompt: bool,
    **kwargs: Any,
) -> Tensor:
    """Responses to one query, of shape (responses, length).

    Args:
        model: what to sample from.
        query: ids. Shape (q,).
        length_sampler: gives the number of new tokens.
        return_prompt: whether a causal model's responses stand behind the query.
        kwargs: arguments of `generate`.
    """
    if length_sampler is not None:
        kwargs["max_new_tokens"] = length_sampler()
    with evaluating(model):
        query = query.to(model.device)
        output: Tensor = model.generate(input_ids=query[None], attention_mask=torch.ones_like(query)[None], **kwargs)
    return output if return_prompt or model.is_encoder_decoder else output[:, len(query) :]


def sample_batches(
    model: PreTrainedModelWithValueHead,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Tensor],
    *,
    length_sampler: LengthSampler | None,
    batch_size: int,
    return_prompt: bool,
    **kwargs: Any,
) -> list[Tensor]:
    """A response to each query, up to and with the first end-of-sequence token behind the query.

    Args:
        model: what to sample from.
        tokenizer: names the padding token.
        queries: ids. Shape (q,) each.
        length_sampler: gives the number of new tokens of a batch.
        batch_size: queries in the model at once.
        return_prompt: whether a causal model's response stands behind its query.
        kwargs: arguments of `generate`.

    Raises:
        ValueError: several responses per query are asked for.
    """
    if kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"expected one response per query, found num_return_sequences={kwargs['num_return_sequences']}; give a "
            "query as often as you want responses to it"
        )
    responses: list[Tensor] = []
    for start in range(0, len(queries), batch_size):
        batch = [query.to(model.device) for query in queries[start : start + batch_size]]
        if length_sampler is not None:
            kwargs["max_new_tokens"] = length_sampler()
        ids, mask = padded(batch, pad_id=cast(int, tokenizer.pad_token_id), on_left=True)
        with evaluating(model):
            output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **kwargs)
        # An encoder-decoder's answer begins with the token that starts the decoder, which may be an end as well.
        begin = 1 if model.is_encoder_decoder else ids.shape[1]
        for query, row in zip(batch, output, strict=True):
            end = _end_of(row[begin:], kwargs.get("eos_token_id"))
            head = row[:begin] if model.is_encoder_decoder else query if return_prompt else row[:0]
            responses.append(torch.cat([head, row[begin : begin + end]]))
    return responses


def _end_of(ids: Tensor, end_ids: Any) -> int:
    """How many ids there are up to and with the first that is an end."""
    if end_ids is None:
        return len(ids)
    places = torch.isin(ids, torch.as_tensor(end_ids, device=ids.device)).nonzero()
    return int(places[0]) + 1 if len(places) else len(ids)


def generation_arguments(
    model: PreTrainedModelWithValueHead, tokenizer: PreTrainedTokenizerBase, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of `generate` with those filled in that say where a response ends and how rows are padded."""
    found = dict(given)
    found.setdefault("pad_token_id", tokenizer.pad_token_id)
    if "eos_token_id" not in found:
        found["eos_token_id"] = (
            sorted(stop_ids(found.get("generation_config") or model.generation_config, tokenizer)) or None
        )
    return found
