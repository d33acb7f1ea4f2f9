"""Sampling of completions that a prompt, a seed and a model decide, and nothing else.

A draw from one random stream shared by a batch would make a completion depend on its neighbours. Here each completion
has random numbers of its own, one per token, and a token is the one at which the cumulative probability passes its
number (inverse transform sampling). Two models that sample with the same seed share these numbers, so that what
they differ in is the models and not luck: a comparison of the two has less noise, and equal models give equal text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)

from stages.models.modes import evaluating
from stages.rows.batching import Padded, fixed_batches, padded


class Sampling(NamedTuple):
    """How completions are drawn."""

    num_samples: int
    """Completions per prompt."""
    max_new_tokens: int
    """Length of a completion in tokens, at most."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Draws from the likeliest tokens that hold this share of the probability."""
    seed: int = 0
    """Another one gives other completions."""
    batch_size: int = 32
    """Completions sampled at once."""


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[str]]:
    """Completions of each prompt as plain text, without special tokens.

    Args:
        model: causal language model or encoder-decoder; it is left in the mode it is found in.
        tokenizer: tokenizer of the model.
        prompts: texts after templating; no further special tokens are added. Equal prompts get equal completions.
        num_samples: completions per prompt.
        max_new_tokens: length of a completion in tokens, at most.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_p: draws from the likeliest tokens that hold this share of the probability.
        seed: another one gives other completions.
        batch_size: completions sampled at once.

    Returns:
        `num_samples` texts for each prompt, in the order of `prompts`.

    Raises:
        ValueError: an argument is out of range, or a prompt has no tokens.
    """
    prompt_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    sampling = Sampling(num_samples, max_new_tokens, temperature, top_p, seed, batch_size)
    samples = sample_ids(model, tokenizer, prompt_ids, sampling=sampling)
    return [tokenizer.batch_decode(row, skip_special_tokens=True) for row in samples]


def sample_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    progress: str | None = None,
) -> list[list[list[int]]]:
    """Completions of each prompt as token ids, up to and with the end-of-sequence token if one was drawn.

    A completion depends on the model, the ids of its prompt, its number among the prompt's samples and `sampling`
    (the batch size is the shape that it is computed in), and not on the other prompts.

    Args:
        model: causal language model or encoder-decoder; it is left in the mode it is found in.
        tokenizer: names the end-of-sequence and padding tokens.
        prompt_ids: ids of each prompt, of any length from 1.
        sampling: how completions are drawn.
        progress: words before the progress bar; None shows no bar.

    Returns:
        `num_samples` lists of ids for each prompt, in the order of `prompt_ids`.

    Raises:
        ValueError: an argument is out of range, or a prompt has no tokens.
    """
    _check(prompt_ids, sampling)
    end_ids = stop_ids(model.generation_config, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_ids, default=0)
    rows = [(prompt, sample) for prompt in range(len(prompt_ids)) for sample in range(sampling.num_samples)]
    lengths = [len(prompt_ids[prompt]) for prompt, _ in rows]

    samples: list[list[list[int]]] = [[[] for _ in range(sampling.num_samples)] for _ in prompt_ids]
    bar = tqdm(total=len(rows), desc=progress, unit="sample", disable=progress is None, mininterval=1.0)
    with evaluating(model), bar:
        for batch in fixed_batches(lengths, batch_size=sampling.batch_size):
            filled = [rows[index] for index in batch.filled]
            ids = [prompt_ids[prompt] for prompt, _ in filled]
            numbers = np.stack([_uniforms(prompt_ids[prompt], sample, sampling) for prompt, sample in filled])
            # A decoder goes on from the right edge, so its prompts all end there. An encoder reads from the left.
            prompts = padded(ids, pad_id=pad_id, width=batch.width, on_left=not model.config.is_encoder_decoder)
            new_ids = _generate(model, prompts, numbers, sampling=sampling, pad_id=pad_id, end_ids=end_ids)
            for (prompt, sample), row in zip(filled[: len(batch.rows)], new_ids, strict=False):
                samples[prompt][sample] = _until_end(row, end_ids)
            bar.update(len(batch.rows))
    return samples


def have_ended(
    completions: Sequence[Sequence[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[bool]:
    """Whether each of the completions that `sample_ids` gave ended by itself, and not at its greatest length."""
    end_ids = stop_ids(model.generation_config, tokenizer)
    return [bool(ids) and ids[-1] in end_ids for ids in completions]


def _check(prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> None:
    for name in ("num_samples", "max_new_tokens", "batch_size"):
        if getattr(sampling, name) < 1:
            raise ValueError(f"expected {name} from 1, found {getattr(sampling, name)}")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError(
            "expected a temperature from 0 and a top_p above 0 and up to 1, found "
            f"temperature {sampling.temperature} and top_p {sampling.top_p}"
        )
    empty = next((i for i, ids in enumerate(prompt_ids) if not len(ids)), None)
    if empty is not None:
        raise ValueError(f"expected at least one token in each prompt, found none in prompt {empty}; leave it out")


def stop_ids(config: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids at which generation stops: those that a generation config lists, and the tokenizer's end of sequence.

    Args:
        config: a `GenerationConfig`, or None.
        tokenizer: of the model.
    """
    return _listed_ids(config) | ({int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set())


def _listed_ids(config: Any) -> set[int]:
    listed = getattr(config, "eos_token_id", None)
    return {int(end) for end in (listed if isinstance(listed, list) else [listed]) if end is not None}


def stop_at(model: Any, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> bool:
    """Have a model stop where the rows that it learns from end, in rollouts and samples and as it is saved.

    Args:
        model: with a generation config; one without generates nothing.
        tokenizer: of the model.
        tokens: ends of the rows besides those at which it stops already.

    Returns:
        Whether it stopped elsewhere before.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return False
    ends = stop_ids(config, tokenizer) | {cast(int, tokenizer.convert_tokens_to_ids(token)) for token in tokens}
    if ends == _listed_ids(config):
        return False
    config.eos_token_id = sorted(ends)
    return True


def _uniforms(ids: Sequence[int], sample: int, sampling: Sampling) -> np.ndarray:
    """Random numbers of one completion, in [0, 1); shape (max_new_tokens,)."""
    name = f"{sampling.seed} {sample} {','.join(map(str, ids))}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(sampling.max_new_tokens)


def _generate(
    model: PreTrainedModel,
    prompts: Padded,
    numbers: np.ndarray,
    *,
    sampling: Sampling,
    pad_id: int,
    end_ids: set[int],
) -> list[list[int]]:
    """New ids of each row of a batch, with whatever follows their end."""
    input_ids, attention_mask = (tensor.to(model.device) for tensor in prompts)
    # A decoder of its own starts from a single token, which says nothing.
    width = 1 if model.config.is_encoder_decoder else input_ids.shape[1]
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        processors.append(_OwnNumbers(torch.from_numpy(numbers), width, sampling))
    # Spelt out, or what the model's makers advise (a penalty, say) would be filled in and the text be another's.
    config = cast(Any, GenerationConfig)(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=pad_id,
        eos_token_id=sorted(end_ids) or None,
    )
    output = cast(Any, model).generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        logits_processor=processors,
    )
    new_ids: list[list[int]] = output[:, width:].tolist()
    return new_ids


def _until_end(row: Sequence[int], end_ids: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in end_ids), len(row) - 1)
    return list(row[: end + 1])


class _OwnNumbers(LogitsProcessor):
    """Leaves of each row's logits the token that the row's own random number picks, for a greedy search to take."""

    def __init__(self, uniforms: Tensor, prompt_width: int, sampling: Sampling) -> None:
        self.uniforms = uniforms  # (n, new tokens)
        self.prompt_width = prompt_width
        self.temperature = sampling.temperature
        self.nucleus = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1.0 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Logits of shape (n, v) that are 0 for one token of each row and minus infinity for the others."""
        scores = scores.float() / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, scores)
        # In float32, which is all that Apple's accelerator has, the sum over a large vocabulary would lose the tail.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        self.uniforms = self.uniforms.to(exact.device)
        cumulative = exact.double().softmax(dim=-1).cumsum(dim=-1)
        targets = self.uniforms[:, input_ids.shape[1] - self.prompt_width, None] * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, targets, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, picked.to(scores.device), 0.0)
