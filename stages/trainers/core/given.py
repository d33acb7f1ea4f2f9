"""A model or a tokenizer as people hand it to a trainer, in any of the types that libraries allow."""

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def name_of(model: Any) -> str | None:
    """The folder or repository that a model is given by, as text or as a path; None for anything else."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else None


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved beside a model.

    Args:
        model: a folder or repository, or a model that was loaded from one.

    Raises:
        ValueError: the model doesn't say where it came from, or there is no tokenizer there.
    """
    name = name_of(model) or getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        if not name:
            raise OSError("the model doesn't say where it came from")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a tokenizer, or one that belongs to the model, found none: {error}") from None
    return tokenizer


def tokenizer_given(tokenizer: Any, model: Any) -> Any:
    """The tokenizer given, perhaps by name, or without one that beside a named model; None where there is none."""
    if name_of(tokenizer) is not None:
        return tokenizer_of(tokenizer)
    if tokenizer is not None or name_of(model) is None:
        return tokenizer
    try:
        return tokenizer_of(model)
    except ValueError:
        # Rows that are encoded, with a collator of one's own, need none; whatever does says so.
        return None


def either(name: str, given: Any, other_name: str, other: Any) -> Any:
    """The value of an argument that has two places; None if it stands in neither.

    Raises:
        ValueError: it stands in both, with two values.
    """
    if given is not None and other is not None and given is not other and given != other:
        raise ValueError(
            f"expected one of {name} and {other_name}, found {given!r:.80} and {other!r:.80}; leave one out"
        )
    return other if given is None else given
