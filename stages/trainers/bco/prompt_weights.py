"""Underlying distribution matching (UDM) inside a trainer: weights of undesired rows from embeddings of prompts.

Jung et al. 2024, https://arxiv.org/abs/2404.04656. The pipeline has this as stages of its own; a trainer that is
given an embedding function does the same in memory, before training.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.udm.classifier import LogisticClassifier, clamped_odds, draw_rows, fit_classifier


class PromptWeights:
    """Gives undesired rows the weight p / (1 - p), where p is how likely their prompt is among desired ones.

    Args:
        embedding_func: called with `input_ids` and `attention_mask`, both (n, t), gives embeddings (n, d).
        embedding_tokenizer: tokenizer for it.
        sample_size: rows of each label that the classifier is fitted on, at most.
        bounds: lower and upper clamp of the weights.
        batch_size: prompts embedded at once.
        seed: decides which rows the classifier is fitted on.
        device: where `embedding_func` wants its input.

    Raises:
        ValueError: only one of function and tokenizer is there.
    """

    def __init__(
        self,
        embedding_func: Callable[..., Any] | None,
        embedding_tokenizer: PreTrainedTokenizerBase | None,
        *,
        sample_size: int,
        bounds: tuple[float, float],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if embedding_func is None or embedding_tokenizer is None:
            raise ValueError(
                "expected both embedding_func and embedding_tokenizer, or neither, found one; the tokenizer is that of "
                "the model behind the function"
            )
        self.embedding_func = embedding_func
        self.tokenizer = embedding_tokenizer
        self.sample_size, self.bounds = sample_size, bounds
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.classifier: LogisticClassifier | None = None

    @classmethod
    def given(cls, embedding_func: Any, embedding_tokenizer: Any, *, args: Any) -> Self | None:
        """What a trainer's arguments ask for; None without function and tokenizer."""
        if embedding_func is None and embedding_tokenizer is None:
            return None
        return cls(
            embedding_func,
            embedding_tokenizer,
            sample_size=args.prompt_sample_size,
            bounds=(args.min_density_ratio, args.max_density_ratio),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            device=args.device,
        )

    def state(self) -> dict[str, Any]:
        """The classifier as plain arrays; empty before it is fitted."""
        return {} if self.classifier is None else self.classifier.to_json()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.classifier = LogisticClassifier.from_json(state) if state else None

    def fit(self, prompts: Sequence[str], labels: Sequence[bool], row_ids: Sequence[str]) -> None:
        """Fit the classifier on at most `sample_size` rows of each label, drawn without replacement."""
        desired = np.asarray(labels, dtype=bool)
        drawn = []
        for members in (np.flatnonzero(desired), np.flatnonzero(~desired)):
            names = [row_ids[int(index)] for index in members]
            drawn.append(members[draw_rows(names, limit=self.sample_size, seed=self.seed)])
        sample = np.concatenate(drawn)
        self.classifier = fit_classifier(self.embed([prompts[int(index)] for index in sample]), desired[sample])

    def weigh(self, rows: Dataset, prompts: Sequence[str]) -> Dataset:
        """`rows` with a column `undesired_weight`.

        Raises:
            ValueError: no classifier was fitted or restored.
        """
        if self.classifier is None:
            raise ValueError(
                "expected a train_dataset to fit the classifier of prompts on, found none; give one, or a checkpoint "
                "that holds a classifier as args.resume_from_checkpoint"
            )
        logits = self.classifier.logits(self.embed(prompts))
        weights = clamped_odds(logits, minimum=self.bounds[0], maximum=self.bounds[1]).astype(np.float32)
        if "undesired_weight" in rows.column_names:
            rows = rows.remove_columns("undesired_weight")
        return rows.add_column("undesired_weight", weights)

    def embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Embedding of each prompt. Shape (n, d).

        Prompts go through the function together with others of their own length only: nothing is padded, so that an
        embedding is the same in any company even if the function averages over all positions.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokenizer(distinct, truncation=True, padding=False)["input_ids"]
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(ids):
            by_length[len(row)].append(index)
        found: dict[str, NDArray[np.float32]] = {}
        for members in by_length.values():
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                batch = torch.tensor([ids[index] for index in part], device=self.device)
                with torch.no_grad():
                    embeddings = self.embedding_func(input_ids=batch, attention_mask=torch.ones_like(batch))
                if embeddings.ndim != 2 or len(embeddings) != len(part):
                    raise ValueError(
                        f"embedding_func: expected embeddings of shape ({len(part)}, d), one per prompt, found "
                        f"{tuple(embeddings.shape)}"
                    )
                found.update(zip((distinct[index] for index in part), embeddings.float().cpu().numpy(), strict=True))
        return np.stack([found[prompt] for prompt in prompts])


def prompts_of(rows: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The text of each row's prompt, as given or decoded from its ids.

    Raises:
        ValueError: there are only ids, and no tokenizer to decode them with.
    """
    if "prompt" in rows.column_names:
        return list(rows["prompt"])
    if tokenizer is None:
        raise ValueError("expected processing_class, a tokenizer, to read the prompts of encoded rows with, found none")
    ids = [row[:length] for row, length in zip(rows["input_ids"], rows["prompt_length"], strict=True)]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True))
