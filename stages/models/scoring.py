"""Reward models: loading them, making one of a policy, and the scores that they give.

A reward model is a model for sequence classification with one label; its score of a row is read at the row's last
token that isn't the model's pad token. So where a tokenizer pads with its end of sequence, the score stands at the
token before the end, for us as for everyone else who loads the model with transformers.
"""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from stages.models.devices import default_device, place
from stages.models.loading import load_causal_lm
from stages.models.pointer import (
    ADAPTER_FILE,
    adapter_base,
    one_line,
    precision_of,
    trusts_code,
    weights_folder,
)
from stages.models.tokenizers import load_tokenizer
from stages.rows.batching import fixed_batches, padded
from stages.text.encoding import encode_rows

_CLASSIFIER = "ForSequenceClassification"


def load_reward_model(folder: Path, *, dtype: str | None = None) -> PreTrainedModel:
    """The reward model in a folder, in evaluation mode, on the CPU.

    Args:
        folder: a reward model of the stage `training`, full or an adapter, or any folder of `save_pretrained`.
        dtype: name of a torch type, such as "bfloat16"; None takes that of `precision_of`.

    Raises:
        ValueError: there is no model, none of safetensors, or none that gives one score.
    """
    found = weights_folder(folder)
    dtype = dtype or precision_of(folder).dtype
    if not (found / ADAPTER_FILE).is_file():
        return _load_classifier(found, dtype=dtype, trust_remote_code=trusts_code(folder))
    # peft is slow to import, and only adapters need it.
    from peft import PeftModel

    base = adapter_base(found)
    # The adapter brings the trained head, so the one made here is replaced.
    model = load_reward_model(base, dtype=dtype) if _is_classifier(base) else reward_model_of(base, dtype=dtype)
    with warnings.catch_warnings():
        # peft asks for a property by the name that transformers 5 moved it from, which is no concern of users.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        adapted = PeftModel.from_pretrained(model, str(found), is_trainable=False)
    return cast(PreTrainedModel, adapted.eval())


def reward_model_of(policy: Path, *, dtype: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A reward model that begins as a policy: its layers, and a new head with one label in place of its vocabulary.

    Args:
        policy: artifact `base_model`, folder that `training` wrote (an adapter is merged), or any folder of a causal
            language model.
        dtype: name of a torch type; None takes what the pointer says, and float32 without one.
        seed: of the head's first weights.

    Raises:
        ValueError: there is no causal language model, or none that transformers can make a classifier of.
    """
    model = load_causal_lm(policy, dtype=dtype)
    if hasattr(model, "merge_and_unload"):
        model = cast(Any, model).merge_and_unload()
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.pad_token_id = load_tokenizer(policy).pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call] # transformers
                config, dtype=model.dtype
            )
        except ValueError as error:
            raise ValueError(
                f"{policy}: expected a model that transformers can classify sequences with, found "
                f"{type(model).__name__}: {one_line(error)}"
            ) from None
    made.base_model.load_state_dict(model.base_model.state_dict())
    return cast(PreTrainedModel, made.eval())


def _is_classifier(folder: Path) -> bool:
    config = AutoConfig.from_pretrained(
        str(weights_folder(folder)), trust_remote_code=trusts_code(folder), local_files_only=True
    )
    return any(_CLASSIFIER in name for name in config.architectures or ())


def _load_classifier(folder: Path, *, dtype: str | None, trust_remote_code: bool) -> PreTrainedModel:
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype or "float32"),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: the reward model can't be loaded: {one_line(error)}") from None
    if loading["missing_keys"]:
        raise ValueError(
            f"{folder}: expected a reward model, found one without {', '.join(sorted(loading['missing_keys']))}; train "
            "one from it by the method reward of the stage training"
        )
    check_reward_model(model, name=str(folder))
    return cast(PreTrainedModel, model.eval())


def check_reward_model(model: nn.Module, *, name: str) -> None:
    """See that a model gives one score a row, as far as its configuration says.

    Args:
        model: a model; one without configuration is taken as it is.
        name: what to call it in the message.

    Raises:
        ValueError: it gives something else.
    """
    config = getattr(model, "config", None)
    if config is not None and config.num_labels != 1:
        raise ValueError(
            f"{name}: expected a model for sequence classification with one label, found {type(model).__name__} with "
            f"{config.num_labels}; load it with AutoModelForSequenceClassification and num_labels=1"
        )


def scores_of(model: nn.Module, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Score of each row, differentiable in the model's weights.

    Args:
        model: a reward model, plain or wrapped (PEFT, data parallel).
        input_ids: token ids, padded on the right with the model's pad token. Shape (n, t).
        attention_mask: 1 for tokens, 0 for padding. Shape (n, t).

    Returns:
        Float32, or float64 for a model in float64. Shape (n,).

    Raises:
        ValueError: the model gives something else than one score a row.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    if logits.shape != (len(input_ids), 1):
        raise ValueError(
            f"expected one score for each of {len(input_ids)} rows, found logits of shape {tuple(logits.shape)}; load "
            "the model with num_labels=1"
        )
    found: Tensor = logits[:, 0] if logits.dtype == torch.float64 else logits[:, 0].float()
    return found


@torch.inference_mode()
def score_sequences(model: nn.Module, sequences: Sequence[Sequence[int]], *, batch_size: int) -> NDArray[np.float32]:
    """Score of each row, in batches of fixed shape, so that neighbours can't change a row's score.

    Args:
        model: a reward model in evaluation mode, on the device to compute on.
        sequences: token ids of each row, at least one.
        batch_size: rows of a forward pass.

    Returns:
        In the order of `sequences`. Shape (n,).

    Raises:
        ValueError: a row is empty, a score isn't finite, or the model has no pad token.
    """
    parameter = next(model.parameters())
    pad_id = getattr(model.config, "pad_token_id", None)
    if pad_id is None:
        raise ValueError("expected a reward model with a pad token, found none; set model.config.pad_token_id")
    lengths = [len(sequence) for sequence in sequences]
    if 0 in lengths:
        raise ValueError(f"expected at least one token in every row, found none in row {lengths.index(0)}")
    scores = np.zeros(len(sequences), dtype=np.float32)
    for rows, filled, width in fixed_batches(lengths, batch_size=batch_size):
        ids, mask = padded([sequences[row] for row in filled], pad_id=pad_id, width=width)
        found = scores_of(model, input_ids=ids.to(parameter.device), attention_mask=mask.to(parameter.device))
        scores[rows] = found.float().cpu().numpy()[: len(rows)]
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"expected finite scores, found {scores[row]} in row {row}; train the reward model anew")
    return scores


class RewardScorer(NamedTuple):
    """A reward model ready to score what a policy says."""

    model: PreTrainedModel
    """On the device to compute on."""
    tokenizer: PreTrainedTokenizerBase
    """The reward model's own."""
    batch_size: int = 16
    """Rows of a forward pass."""
    max_length: int | None = None
    """Tokens of a row, at most; longer ones lose the start of their prompt. None sets no limit."""

    @classmethod
    def load(cls, folder: Path, *, batch_size: int = 16) -> Self:
        """The reward model and the tokenizer of a folder; rows are cut to the positions that the model has.

        Raises:
            ValueError: there is no reward model or no tokenizer.
        """
        model = load_reward_model(folder)
        longest = getattr(model.config, "max_position_embeddings", None)
        return cls(place(model, default_device()), load_tokenizer(folder), batch_size, longest)

    def texts(
        self, prompts: Sequence[str], completions: Sequence[str], are_complete: Sequence[bool] | None = None
    ) -> NDArray[np.float32]:
        """Score of each completion of a prompt, encoded as the stage `tokenization` does.

        Args:
            prompts: texts after templating; n of them.
            completions: what follows each.
            are_complete: whether each completion ended by itself, so that an end of sequence is due. None: all did.

        Returns:
            Shape (n,).
        """
        encoded = encode_rows(
            self.tokenizer,
            prompts=prompts,
            completions=completions,
            are_complete=[True] * len(prompts) if are_complete is None else are_complete,
            bos="as_served",
        )
        return self.sequences([[*row.prompt_ids, *row.completion_ids] for row in encoded])

    def sequences(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Score of each row of token ids of prompt and completion. Shape (n,)."""
        return score_sequences(self.model, [self._cut(row) for row in sequences], batch_size=self.batch_size)

    def _cut(self, row: Sequence[int]) -> Sequence[int]:
        if self.max_length is None or len(row) <= self.max_length:
            return row
        starts_with_bos = row[0] == self.tokenizer.bos_token_id
        # The score is read at the end, so that the end is what must stay.
        return [row[0], *row[1 - self.max_length :]] if starts_with_bos else row[-self.max_length :]
