"""What is left of the demo's choices beside another log, and what a model can't hold; known before a training."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.graph import StageNode
from pipelines.params import Params

LOOKED_AT = 200
"""Rows of the log that are looked at."""
JUDGED = {"true_reward", "win_rate"}
"""Metrics that a judge measures."""
CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer puts into a token on average, so that only what is much too long is named."""


def choice_problems(params: Params, nodes: Sequence[StageNode]) -> list[str]:
    """A sentence per choice that will fail a run or spoil it, where the log isn't written by the graph itself.

    Args:
        params: params.yaml.
        nodes: the graph.
    """
    problems = list(_length_problems(params))
    log = Path(params.inputs.feedback)
    if any(str(log) in node.outs for node in nodes):
        return problems
    rows = _rows_of(log, params)
    return [*problems, *_demo_problems(params, nodes), *_slice_problems(params, rows), *_limit_problems(params, rows)]


def missing_inputs(params: Params, nodes: Sequence[StageNode]) -> Iterator[str]:
    """Paths of `inputs` that a stage reads and that are neither here nor to be had from DVC's remote."""
    read = {dep for node in nodes for dep in node.deps}
    written = {out for node in nodes for out in node.outs}
    for key, value in params.inputs.model_dump().items():
        path = Path(value)
        if value in read - written and not path.exists() and not pointer_of(path).is_file():
            yield f"inputs.{key}: expected a file or folder at {value}, found nothing there"


def pointer_of(path: Path) -> Path:
    """The file by which git knows what DVC keeps."""
    return path.with_name(f"{path.name}.dvc")


def _demo_problems(params: Params, nodes: Sequence[StageNode]) -> Iterator[str]:
    if params.evaluation.judge == "demo" and any(node.module == "stages.evaluation" for node in nodes):
        yield "evaluation.judge: demo knows the answers of the demo's world alone; set it to none, or name a judge"
    for method in params.run.methods:
        section, gate = getattr(params.training, method, None), getattr(params.gate, method, None)
        if getattr(section, "reward", None) == "demo":
            yield f"training.{method}.reward: demo rewards the demo's answers alone; name a function or reward models"
        for key in ("minimums", "maximums"):
            for metric in getattr(gate, key, {}):
                if params.evaluation.judge in {"none", "demo"} and metric.partition("/")[0] in {
                    "true_reward",
                    "win_rate",
                }:
                    yield f"gate.{method}.{key}: {metric} is measured by a judge alone; take it out, or name a judge"


def _slice_problems(params: Params, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    wanted, known = params.evaluation.slice_by, {name for row in rows for name in _names(row)}
    if wanted is not None and rows and wanted not in known:
        yield (
            f"evaluation.slice_by: expected a column of the log, found no {wanted!r} in its first {len(rows):,} rows; "
            f"name one of {', '.join(sorted({name for row in rows for name in row}))}, or null"
        )


def _names(value: Any) -> Iterator[str]:
    """Names at any depth, as exports keep what columns hold in objects."""
    if isinstance(value, Mapping):
        yield from map(str, value)
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _limit_problems(params: Params, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    limit = params.tokenization.max_length
    if limit is None or not rows:
        return
    typical = int(median(len(json.dumps(row, ensure_ascii=False, default=str)) for row in rows))
    if typical > CHARACTERS_PER_TOKEN * limit:
        yield (
            f"tokenization.max_length: {limit:,} tokens hold no more than the start of most rows, which have a median "
            f"of {typical:,} characters; raise it"
        )


def _length_problems(params: Params) -> Iterator[str]:
    positions = _positions(params)
    if positions is None:
        return
    for key, length in (
        ("tokenization.max_length", params.tokenization.max_length),
        ("evaluation.max_new_tokens", params.evaluation.max_new_tokens),
    ):
        if length is not None and length > positions:
            yield f"{key}: {length:,} tokens are more than the model has positions; set it to {positions:,} or less"


def _positions(params: Params) -> int | None:
    """Positions of the base model, where its configuration is on this machine."""
    from stages.models.pointer import download_snapshot, num_positions

    base = params.base_model
    try:
        if base.source == "local":
            return num_positions(Path(params.inputs.base_model))
        if base.source == "hub" and base.repository and base.revision:
            return num_positions(download_snapshot(base.repository, base.revision, local_files_only=True))
    except (ValueError, OSError):
        # What is wrong with the model itself is said elsewhere.
        return None
    return None


def _rows_of(log: Path, params: Params) -> list[dict[str, Any]]:
    from pipelines.adoption.survey import first_rows

    try:
        return first_rows(log, params, LOOKED_AT)
    except (ValueError, OSError):
        # What is wrong with the log is said by the stage that reads it, and a missing one by its name.
        return []
