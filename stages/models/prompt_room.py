"""How long rows may be, and a prompt so that an answer fits behind it."""

import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from stages.models.pointer import ADAPTER_FILE, adapter_base, trusts_code, weights_folder


def prompt_room(base_model: Path, *, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have so that an answer fits behind it; None where positions have no end.

    Args:
        base_model: `base_model` artifact or folder of a model; no weights are loaded.
        max_new_tokens: length of an answer, at most.

    Raises:
        ValueError: no prompt has room.
    """
    folder = weights_folder(base_model)
    if (folder / ADAPTER_FILE).is_file():
        return prompt_room(adapter_base(folder), max_new_tokens=max_new_tokens)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trusts_code(base_model), local_files_only=True)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions <= max_new_tokens:
        raise ValueError(
            f"max_new_tokens: expected fewer than the {positions} positions of the model, found {max_new_tokens}"
        )
    return None if positions is None else positions - max_new_tokens


def learned_positions(model: Any) -> float:
    """Positions that a model has an embedding for; infinite where they are computed, as by rotation."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return math.inf
    of_tokens = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    tables = [table for table in model.modules() if isinstance(table, nn.Embedding) and table is not of_tokens]
    # OPT and its kin have two more rows than positions.
    return positions if {table.num_embeddings - positions for table in tables} & {0, 2} else math.inf
