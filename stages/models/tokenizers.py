"""Tokenizers by the artifact that names them; apart from models, whose libraries take seconds to load."""

import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.models.pointer import (
    ADAPTER_FILE,
    POINTER_FILE,
    TOKENIZER_FILES,
    adapter_base,
    one_line,
    trusts_code,
    weights_folder,
)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model or of a trained one.

    A tokenizer without pad token pads with its end of sequence; masks, not ids, say what is padding.

    Args:
        folder: artifact `base_model`, folder that `training` wrote, or any folder of `save_pretrained`.
        trust_remote_code: whether code that a plain folder brings may run; a pointer says so itself.

    Raises:
        ValueError: there is no model or no tokenizer, it isn't the one that the pointer names, or it has neither a
            pad token nor an end of sequence.
    """
    found = weights_folder(folder)
    has_tokenizer = any(file.is_file() for pattern in TOKENIZER_FILES for file in found.glob(pattern))
    if not has_tokenizer and (found / ADAPTER_FILE).is_file():
        return load_tokenizer(adapter_base(found))
    if not has_tokenizer:
        raise ValueError(
            f"{found}: expected a tokenizer beside the weights, found none; save one there with save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(found), trust_remote_code=trust_remote_code or trusts_code(folder), local_files_only=True
        )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{found}: the tokenizer can't be loaded: {one_line(error)}") from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{found}: expected a tokenizer with a pad token or an end of sequence, found neither; set one in its "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def tokenizer_alone(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder that needn't have weights, nor more of it than its configuration.

    One of a `tokenizer_config.json` alone knows its control tokens and its chat template, and encodes nothing.

    Args:
        folder: with a `tokenizer_config.json`.

    Raises:
        ValueError: there is none, or it can't be read.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        raise ValueError(f"{file}: expected the configuration of a tokenizer, found none; run `dvc repro base_model`")
    try:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
        facts = json.loads(file.read_text(encoding="utf-8"))
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else facts.get("chat_template")
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: the tokenizer can't be loaded: {one_line(error)}") from None
    named = {name: _token(facts.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    others = [_token(token) for token in facts.get("added_tokens_decoder", {}).values() if token.get("special")]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers
        tokenizer_object=Tokenizer(WordLevel({})),
        **{name: token for name, token in named.items() if token},
        additional_special_tokens=[token for token in others if token not in named.values()],
        chat_template={each["name"]: each["template"] for each in text} if isinstance(text, list) else text,
    )


def _token(said: Any) -> str | None:
    """A token as configurations have it: a text, or an object with its content."""
    found = said.get("content") if isinstance(said, dict) else said
    return found if isinstance(found, str) else None


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens at which a model's generation stops: those of `generation_config.json`, else those of `config.json`.

    Args:
        folder: as for `load_tokenizer`.
        tokenizer: the model's.
    """
    found = weights_folder(folder) if (folder / POINTER_FILE).is_file() else folder
    if (found / ADAPTER_FILE).is_file():
        return stop_tokens(adapter_base(found), tokenizer)
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if (found / name).is_file():
            listed = json.loads((found / name).read_text(encoding="utf-8")).get("eos_token_id")
            ids = ids or [end for end in (listed if isinstance(listed, list) else [listed]) if isinstance(end, int)]
    tokens = [tokenizer.convert_ids_to_tokens(end) for end in dict.fromkeys(ids)]
    return [token for token in tokens if isinstance(token, str)]
