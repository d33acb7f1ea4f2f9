"""Models by the artifact that names them.

`load_causal_lm` reads the artifact `base_model`, what `training` writes (full weights, or an adapter whose
`plumbline.json` names its base) and any plain folder in the layout of `save_pretrained`. Weights are read from
safetensors only, and code that a model brings runs only if the pointer says so.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stages.models.pointer import (
    ADAPTER_FILE,
    Precision,
    adapter_base,
    one_line,
    precision_of,
    trusts_code,
    weights_folder,
)


def load_causal_lm(folder: Path, *, dtype: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the CPU.

    Args:
        folder: artifact `base_model`, folder that `training` wrote, or any folder of `save_pretrained`.
        dtype: name of a torch type, such as "bfloat16"; None takes that of `precision_of`, whose attention and
            bits hold in any case.

    Returns:
        The model; for an adapter, the base with the adapter laid on it and nothing trainable.

    Raises:
        ValueError: there is no model, none of safetensors, not the one that the pointer names, or one that isn't a
            causal language model.
    """
    found = weights_folder(folder)
    if (found / ADAPTER_FILE).is_file():
        return _load_adapter(found, dtype=dtype)
    trust_remote_code = trusts_code(folder)
    precision = precision_of(folder)
    config = _load_config(found, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(found),
            config=config,
            dtype=getattr(torch, dtype or precision.dtype),
            **_arithmetic(precision),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{found}: the model can't be loaded: {one_line(error)}") from None
    loaded = cast(PreTrainedModel, model)
    loaded.train(False)
    return loaded


def _arithmetic(precision: Precision) -> dict[str, Any]:
    """Arguments of `from_pretrained` for how a model computes, besides the type of its weights."""
    found: dict[str, Any] = {} if precision.attention is None else {"attn_implementation": precision.attention}
    if precision.quantisation is not None:
        # Only weights of few bits need it.
        from transformers import BitsAndBytesConfig

        bits = {f"load_in_{precision.quantisation}": True}
        found["quantization_config"] = BitsAndBytesConfig(**bits)  # type: ignore[no-untyped-call] # transformers
    return found


def check_causal_lm(folder: Path, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> None:
    """See that the model in a folder can be a base model, without loading its weights.

    Raises:
        ValueError: it is an adapter, no causal language model, one whose code isn't trusted, or one with fewer
            embeddings than its tokenizer has tokens.
    """
    if (folder / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{folder}: expected a whole model, found an adapter; merge it into its base with merge_and_unload of peft "
            "and save that"
        )
    config = _load_config(folder, trust_remote_code=trust_remote_code)
    embeddings = config.get_text_config().vocab_size
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"{folder}: expected an embedding for each of the tokenizer's {len(tokenizer)} tokens, found {embeddings}; "
            "save the model after resize_token_embeddings, or take the tokenizer that it was trained with"
        )


def _load_config(folder: Path, *, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder}: the model brings code of its own, which is not run; read it, then set "
                "base_model.trust_remote_code to true"
            ) from None
        raise ValueError(f"{folder}: the model's configuration can't be read: {one_line(error)}") from None
    if config.is_encoder_decoder:
        raise ValueError(f"{folder}: expected a causal language model, found an encoder-decoder ({config.model_type})")
    return cast(PretrainedConfig, config)


def _load_adapter(folder: Path, *, dtype: str | None) -> PreTrainedModel:
    # peft is slow to import, and only adapters need it.
    from peft import PeftModel

    base = load_causal_lm(adapter_base(folder), dtype=dtype or precision_of(folder).dtype)
    with warnings.catch_warnings():
        # peft asks for a property by the name that transformers 5 moved it from, which is no concern of users.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
    return cast(PreTrainedModel, adapted.eval())


@contextmanager
def refused_arguments(name: str) -> Iterator[None]:
    """A context in which an argument that a model's class doesn't take is a ValueError.

    Args:
        name: what the arguments stand in, for the message.

    Raises:
        ValueError: such an argument was given.
    """
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        bits = re.search("load_in_[48]bit", str(error))
        remedy = f"; give quantization_config=BitsAndBytesConfig({bits[0]}=True)" if bits else ""
        raise ValueError(f"{name}: expected arguments that the model takes, found another: {error}{remedy}") from None
