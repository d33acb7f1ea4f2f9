"""Rows that a test writes down by hand, as the artifacts that stages read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.contracts.artifact import Contract, read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.contracts.training_rows import Kind
from stages.rows.mismatched import mismatched_places, mismatched_rows
from stages.rows.reading import TrainingRows, read_rows
from stages.rows.reading import write_rows as write_training_rows
from stages.rows.table import FoundRows
from tests.stages.feedback import write_reference_logps, write_rows, write_tokens


def artifacts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[Path, Path]:
    """`tokens` of rows whose completion is 10 and their number, and log-probabilities that are minus that number."""
    filled = [{"input_ids": [1, 5, 10 + number], "prompt_length": 2, **row} for number, row in enumerate(rows)]
    tokens = write_tokens(folder / "tokens", filled)
    return tokens, write_reference_logps(folder / "logps", [-float(n) for n in range(len(rows))], [1] * len(rows))


def pair(name: str, label: bool | None, **row: Any) -> dict[str, Any]:
    """A row of a pair of that name."""
    return {"prompt_id": "p", "pair_id": name, "label": label, **row}


def vote(prompt: str, label: bool | None, **row: Any) -> dict[str, Any]:
    """A row with a vote; None for one that nobody voted on."""
    return {"prompt_id": prompt, "label": label, **row}


def mismatched_logps(folder: Path, tokens: Path, **changes: Any) -> Path:
    """`reference_logps` of the mismatched rows of `tokens`, from -100 downwards, with `changes` in the first."""
    table = read_table(tokens, TOKENS)
    rows = mismatched_rows(table, mismatched_places(table))
    made = [
        {"row_id": row_id, "logps": -100.0 - place, "num_tokens": 1, "token_logps": None}
        for place, row_id in enumerate(rows["row_id"].to_pylist())
    ]
    return write_rows(folder / "mismatched", REFERENCE_LOGPS, [{**made[0], **changes}, *made[1:]])


def density_ratios(folder: Path, prompts: Sequence[str]) -> Path:
    """`density_ratios` of those prompts: weights and offset of the first are 1, 2 and 3, of the second 2, 4 and 6."""
    rows = [
        {
            "prompt_id": prompt,
            "desirable_probability": 0.5,
            "density_ratio": 1.0,
            "desired_weight": 1.0 * number,
            "undesired_weight": 2.0 * number,
            "logit_offset": 3.0 * number,
        }
        for number, prompt in enumerate(prompts, start=1)
    ]
    return write_rows(folder / "ratios", DENSITY_RATIOS, rows)


def kept(folder: Path, found: FoundRows, source: Path, kind: Kind, contract: Contract = TOKENS) -> TrainingRows:
    """The rows, written as an artifact and read again."""
    write_training_rows(folder / "rows", found, kind=kind, source=source)
    return read_rows(folder / "rows", source, contract, kind=kind)
