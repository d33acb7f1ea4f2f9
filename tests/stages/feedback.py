"""Artifacts small enough to write in a test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.contracts.artifact import Contract, write_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.prompt_embeddings import PROMPT_EMBEDDINGS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS


def write_rows(path: Path, contract: Contract, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as an artifact."""
    fields = [*contract.fields, *(field for field in contract.optional if any(field.name in row for row in rows))]
    names = [field.name for field in fields]
    columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in fields}
    write_table(path, pa.table(columns).select(names), contract)
    return path


def write_tokens(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `tokens`; what a row doesn't say is the same for all."""
    defaults = {"pair_id": None, "label": True, "weight": 1.0, "split": "train", "truncated": False}
    filled = []
    for index, row in enumerate(rows):
        own = {"row_id": f"row{index}", "prompt_id": f"prompt{index}", "input_ids": [5, 6, 7], "prompt_length": 1}
        filled.append({**defaults, **own, **row})
    return write_rows(path, TOKENS, filled)


def write_completions(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `completions`; a row needs a prompt and may say more."""
    filled = []
    for index, row in enumerate(rows):
        prompt = row["prompt"]
        own = {
            "row_id": f"row{index}",
            "prompt_id": f"id of {prompt}",
            "pair_id": None,
            "label": True,
            "weight": 1.0,
            "split": "train",
            "completion": "yes",
            "is_complete": True,
            "messages": json.dumps({"prompt": prompt, "completion": "yes"}),
            "source": "{}",
        }
        filled.append({**own, **row})
    return write_rows(path, COMPLETIONS, filled)


def write_embeddings(path: Path, prompt_ids: Sequence[str], embeddings: np.ndarray) -> Path:
    """Write `prompt_embeddings`. The embeddings have shape (n, d)."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float32).ravel()), embeddings.shape[1])
    write_table(path, pa.table({"prompt_id": list(prompt_ids), "embedding": vectors}), PROMPT_EMBEDDINGS)
    return path


def write_reference_logps(path: Path, logps: Sequence[float], num_tokens: Sequence[int]) -> Path:
    """Write `reference_logps` of the rows that `write_tokens` names by default."""
    rows = [
        {"row_id": f"row{index}", "logps": value, "num_tokens": count, "token_logps": None}
        for index, (value, count) in enumerate(zip(logps, num_tokens, strict=True))
    ]
    return write_rows(path, REFERENCE_LOGPS, rows)
