"""Policy and reference side by side: what both sample for the same prompts, and how far apart they are.

The models are loaded one after the other, so that memory holds one. Both draw with the same random numbers, so what
differs in their answers is due to the models.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stages.contracts.files import kept
from stages.models.devices import default_device, place
from stages.models.generation import Sampling, sample_ids
from stages.models.loading import load_causal_lm
from stages.models.pointer import precision_of
from stages.models.row_logps import row_logps
from stages.models.tokenizers import load_tokenizer
from stages.text.encoding import encode_rows


class Comparison(NamedTuple):
    """What both models did on n labelled rows and k prompts."""

    policy_logps: NDArray[np.float64]
    """Log-probability of each labelled completion under the policy, nats. Shape (n,)."""
    policy_texts: list[list[str]]
    """Completions of each prompt, without special tokens."""
    reference_texts: list[list[str]]
    values: Mapping[str, NDArray[np.float64]]
    """Means over the samples of each prompt: `kl` of the policy to the reference, in nats per completion, and
    `length/policy` and `length/reference`, in tokens. Shape (k,) each."""
    num_cut: int
    """Prompts whose beginning was cut off, because the model has too few positions."""


def kept_comparison(file: Path, make: Callable[[], Comparison]) -> Comparison:
    """What `make` gives, from `file` if an earlier process has kept it there; else it is kept there.

    Args:
        file: JSON, which holds floats of 64 bits as they are.
        make: samples and scores, which takes hours where a judge that fails afterwards takes minutes.
    """

    def plain() -> dict[str, Any]:
        found = make()
        values = {name: means.tolist() for name, means in found.values.items()}
        return {**found._asdict(), "policy_logps": found.policy_logps.tolist(), "values": values}

    kept_values = kept(file, plain)
    values = {name: np.array(means, dtype=np.float64) for name, means in kept_values["values"].items()}
    policy_logps = np.array(kept_values["policy_logps"], dtype=np.float64)
    return Comparison(**{**kept_values, "policy_logps": policy_logps, "values": values})


def compare_models(
    policy: Path,
    reference: Path,
    *,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    prompts: Sequence[str],
    sampling: Sampling,
    spans: Sequence[Sequence[int] | None] | None = None,
) -> Comparison:
    """Score labelled rows with the policy, and sample and score completions of prompts with both models.

    The KL is estimated sequence by sequence: the mean, over the policy's own samples, of the difference of their
    log-probabilities. It can come out below zero by chance.

    Args:
        policy: folder of the trained model.
        reference: artifact `base_model`.
        sequences: ids of prompt and completion of each labelled row.
        prompt_lengths: how many of those are the prompt.
        prompts: texts after templating to sample completions for.
        sampling: how completions are drawn; its batch size also holds for scoring.
        spans: of each labelled row, the tokens of its completion that the assistant said; None: all of every row.

    Raises:
        ValueError: a model is missing or has no room for a completion, or the policy gives no finite numbers.
    """
    tokenizer = load_tokenizer(reference)
    encoded = encode_rows(
        tokenizer,
        prompts=prompts,
        completions=[None] * len(prompts),
        are_complete=[True] * len(prompts),
        bos="as_served",
    )

    # Both as training held the policy, or what they differ by would be a rounding as well.
    precision, device = precision_of(policy), default_device()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision.bf16):
        model = _stopping(place(load_causal_lm(policy, dtype=precision.dtype), device), policy)
        prompt_ids = _fitting([row.prompt_ids for row in encoded], model, sampling)
        policy_logps = _scored(model, sequences, prompt_lengths, sampling, "held-out rows, policy", spans)
        if not np.isfinite(policy_logps).all():
            raise ValueError(
                f"{policy}: expected finite log-probabilities, found {int((~np.isfinite(policy_logps)).sum())} others; "
                "training diverged, lower its learning_rate"
            )
        ours = sample_ids(model, tokenizer, prompt_ids, sampling=sampling, progress="samples of the policy")
        ours_by_policy = _sample_logps(model, prompt_ids, ours, sampling, "their log-probabilities, policy")
        del model

        model = _stopping(place(load_causal_lm(reference, dtype=precision.dtype), device), policy)
        theirs = sample_ids(model, tokenizer, prompt_ids, sampling=sampling, progress="samples of the reference")
        ours_by_reference = _sample_logps(
            model, prompt_ids, ours, sampling, "log-probabilities of the policy's samples"
        )

    values = {
        "kl": (ours_by_policy - ours_by_reference).mean(axis=1),
        "length/policy": _mean_lengths(ours),
        "length/reference": _mean_lengths(theirs),
    }
    num_cut = sum(len(row.prompt_ids) > len(ids) for row, ids in zip(encoded, prompt_ids, strict=True))
    return Comparison(policy_logps, _texts(tokenizer, ours), _texts(tokenizer, theirs), values, num_cut)


def _stopping(model: PreTrainedModel, policy: Path) -> PreTrainedModel:
    """`model`, to stop where the policy is served to: an adapter doesn't load its own ends, and a base hasn't them."""
    config = getattr(model, "generation_config", None)
    if config is not None and (policy / "generation_config.json").is_file():
        config.eos_token_id = GenerationConfig.from_pretrained(str(policy)).eos_token_id
    return model


def _fitting(prompt_ids: Sequence[list[int]], model: PreTrainedModel, sampling: Sampling) -> list[list[int]]:
    """The ends of the prompts that leave room for a completion among the positions that the model has."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return list(prompt_ids)
    room = positions - sampling.max_new_tokens
    if room < 1:
        raise ValueError(
            f"expected max_new_tokens below the {positions} positions of the model, found {sampling.max_new_tokens}"
        )
    return [ids[-room:] for ids in prompt_ids]


def _sample_logps(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    samples: Sequence[Sequence[list[int]]],
    sampling: Sampling,
    progress: str,
) -> NDArray[np.float64]:
    """Log-probability of each sample; shape (prompts, samples)."""
    sequences = [ids + sample for ids, row in zip(prompt_ids, samples, strict=True) for sample in row]
    lengths = [len(ids) for ids, row in zip(prompt_ids, samples, strict=True) for _ in row]
    return _scored(model, sequences, lengths, sampling, progress).reshape(len(samples), sampling.num_samples)


def _scored(  # noqa: PLR0917 - what a row is, and how it is scored
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    sampling: Sampling,
    progress: str,
    spans: Sequence[Sequence[int] | None] | None = None,
) -> NDArray[np.float64]:
    # Pieces only move the bar on; a row's value is the same in any piece.
    piece = 32 * sampling.batch_size
    logps = [np.zeros(0)]
    with tqdm(total=len(sequences), desc=progress, unit="row", mininterval=1.0) as bar:
        for start in range(0, len(sequences), piece):
            part = slice(start, start + piece)
            found = row_logps(
                model,
                sequences[part],
                prompt_lengths[part],
                batch_size=sampling.batch_size,
                spans=None if spans is None else spans[part],
            )
            logps.append(found.logps.astype(np.float64))
            bar.update(len(found.logps))
    return np.concatenate(logps)


def _mean_lengths(samples: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.float64]:
    return np.array([np.mean([len(sample) for sample in row]) for row in samples], dtype=np.float64)


def _texts(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sequence[list[int]]]) -> list[list[str]]:
    return [tokenizer.batch_decode(list(row), skip_special_tokens=True) for row in samples]
