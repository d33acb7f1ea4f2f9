"""Rollouts as PPO takes them: queries, responses, scores and masks, checked, and padded into one batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.rows.batching import pad_rows

Collator = Callable[[list[dict[str, Tensor]]], Mapping[str, Tensor]]


class Rollouts(NamedTuple):
    """A batch of n queries with their responses."""

    queries: list[Tensor]
    """Ids of each query. Shape (q,) each."""
    responses: list[Tensor]
    """Ids of each response. Shape (r,) each."""
    scores: Tensor
    """Of the responses. Float32, shape (n,)."""
    response_masks: list[Tensor] | None
    """1 for tokens of a response that count, per response; None counts all. Shape (r,) each."""


class Inputs(NamedTuple):
    """A batch as the model reads it, of n rows with t columns; an encoder-decoder's answers have u columns."""

    model_inputs: dict[str, Tensor]
    """Ids and masks, padded: arguments of the model's scoring pass but for `completion_mask`."""
    completion_mask: Tensor
    """1 for tokens of a response that count. Shape (n, t); of an encoder-decoder (n, u)."""
    token_mask: Tensor
    """The same in the places of the log-probabilities: shape (n, t - 1); of an encoder-decoder (n, u)."""

    def rows(self, index: Any) -> "Inputs":
        """The rows that an index of tensors picks."""
        model_inputs = {name: tensor[index] for name, tensor in self.model_inputs.items()}
        return Inputs(model_inputs, self.completion_mask[index], self.token_mask[index])


def check_rollouts(
    queries: Any, responses: Any, scores: Any, response_masks: Any, *, batch_size: int, device: torch.device
) -> Rollouts:
    """The arguments of a step, as they have to be.

    Args:
        queries: one tensor of ids per row.
        responses: one tensor of ids per row.
        scores: one number per row, as a number or a tensor of one entry.
        response_masks: one mask per response, or None.
        batch_size: rows that a step takes.
        device: where the tensors are needed.

    Raises:
        ValueError: an argument is no list of `batch_size` items, an item has another shape, a query or response is
            empty, a response has no token that counts, or a score isn't finite.
    """
    lists = {"queries": queries, "responses": responses, "scores": scores}
    lists |= {} if response_masks is None else {"response_masks": response_masks}
    for name, items in lists.items():
        if not isinstance(items, list | tuple):
            raise ValueError(f"expected {name} as a list of {batch_size} tensors, found a {type(items).__name__}")
        if len(items) != batch_size:
            raise ValueError(f"expected {name} of batch_size={batch_size} items, found {len(items)}")
    for name in ("queries", "responses"):
        _check_sequences(name, lists[name])
    if response_masks is not None:
        _check_masks(response_masks, responses)
    values = _as_scores(scores)
    return Rollouts(
        [query.to(device) for query in queries],
        [response.to(device) for response in responses],
        values.to(device),
        None if response_masks is None else [mask.to(device) for mask in response_masks],
    )


def _check_sequences(name: str, items: Sequence[Any]) -> None:
    for index, item in enumerate(items):
        if not isinstance(item, Tensor) or item.dim() != 1 or not len(item):
            found = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
            raise ValueError(
                f"expected {name} as tensors of shape (length,) with at least one token, found {found} in row "
                f"{index}; leave out rows that are empty"
            )
        if item.is_floating_point():
            raise ValueError(f"expected {name} as token ids, found {item.dtype} in row {index}; give item.long()")


def _check_masks(masks: Sequence[Any], responses: Sequence[Tensor]) -> None:
    for index, (mask, response) in enumerate(zip(masks, responses, strict=True)):
        if not isinstance(mask, Tensor) or mask.shape != response.shape or not mask.any():
            found = f"shape {tuple(mask.shape)}, sum {int(mask.sum())}" if isinstance(mask, Tensor) else repr(mask)
            raise ValueError(
                f"expected response_masks of {tuple(response.shape)} with a 1 for at least one token in row {index}, "
                f"found {found}"
            )


def _as_scores(scores: Sequence[Any]) -> Tensor:
    found = [torch.as_tensor(score, dtype=torch.float32).cpu() for score in scores]
    for index, score in enumerate(found):
        if score.numel() != 1 or not score.isfinite().all():
            raise ValueError(f"expected scores as one finite number per row, found {score.tolist()} in row {index}")
    return torch.stack([score.reshape(()) for score in found])


def padded_inputs(rollouts: Rollouts, collate: Collator, *, decoder_start: int | None) -> dict[str, Tensor]:
    """Ids and attention masks of the rows, padded into one batch on the side that the collator pads.

    Args:
        rollouts: the rows.
        collate: pads dicts of `input_ids` and `attention_mask`.
        decoder_start: of an encoder-decoder, the id that its answers begin with; None for a causal language model,
            whose response stands behind the query.
    """
    if decoder_start is None:
        return _padded([torch.cat(pair) for pair in zip(rollouts.queries, rollouts.responses, strict=True)], collate)
    answers = [response[skip:] for response, skip in _answers(rollouts, decoder_start)]
    # On the right, where a decoder that looks back alone doesn't see it; so any id will do.
    ids = pad_rows(answers, pad_id=decoder_start).to(answers[0].device)
    return {**_padded(rollouts.queries, collate), "decoder_input_ids": ids}


def as_inputs(rollouts: Rollouts, model_inputs: dict[str, Tensor], *, decoder_start: int | None) -> Inputs:
    """A padded batch with masks that say where the responses lie in it.

    Args:
        rollouts: the rows.
        model_inputs: the same as `padded_inputs` gives them.
        decoder_start: as for `padded_inputs`.

    Raises:
        ValueError: a response has no token left that counts, or fewer than two of the whole batch do.
    """
    mask = torch.zeros_like(model_inputs["input_ids" if decoder_start is None else "decoder_input_ids"])
    if decoder_start is None:
        firsts = model_inputs["attention_mask"].argmax(-1).tolist()
        starts = [first + len(query) for first, query in zip(firsts, rollouts.queries, strict=True)]
        skips = [0] * len(starts)
    else:
        starts = [0] * len(rollouts.responses)
        skips = [skip for _, skip in _answers(rollouts, decoder_start)]
    for row, (start, skip, response) in enumerate(zip(starts, skips, rollouts.responses, strict=True)):
        kept = 1 if rollouts.response_masks is None else rollouts.response_masks[row][skip:].to(mask)
        mask[row, start : start + len(response) - skip] = kept
    inputs = Inputs(model_inputs, mask, mask[:, 1:] if decoder_start is None else mask)
    counts = inputs.token_mask.sum(-1)
    if counts.min() < 1 or counts.sum() < 2:
        raise ValueError(
            "expected a token that counts in each response and two in all, whose advantages are compared, found "
            f"{counts.tolist()}; leave out empty responses, and take a larger batch"
        )
    return inputs


def _answers(rollouts: Rollouts, decoder_start: int) -> list[tuple[Tensor, int]]:
    """Responses, and 1 for those that bring along the token that the decoder is started by, which it gets anyway."""
    return [(response, int(len(response) > 1 and int(response[0]) == decoder_start)) for response in rollouts.responses]


def _padded(sequences: Sequence[Tensor], collate: Collator) -> dict[str, Tensor]:
    batch = collate([{"input_ids": ids.cpu(), "attention_mask": torch.ones_like(ids.cpu())} for ids in sequences])
    device = sequences[0].device
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def trimmed(inputs: Inputs) -> tuple[Inputs, tuple[int, int]]:
    """The batch without the columns that are padding in all of its rows.

    Returns:
        The narrower batch, and how many places go missing before and after its tokens' log-probabilities.
    """
    width = inputs.model_inputs["input_ids"].shape[1]
    used = inputs.model_inputs["attention_mask"].any(0).nonzero().flatten()
    first, end = int(used[0]), int(used[-1]) + 1
    ids = {name: inputs.model_inputs[name][:, first:end] for name in ("input_ids", "attention_mask")}
    answers = inputs.model_inputs.get("decoder_input_ids")
    if answers is None:
        mask = inputs.completion_mask[:, first:end]
        return Inputs(ids, mask, mask[:, 1:]), (first, width - end)
    length = int(inputs.completion_mask.any(0).nonzero().max()) + 1
    mask = inputs.completion_mask[:, :length]
    return Inputs({**ids, "decoder_input_ids": answers[:, :length]}, mask, mask), (0, answers.shape[1] - length)
