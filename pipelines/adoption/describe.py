"""What was found and chosen, for people; plain lines, whether a terminal reads them or a file."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.adoption.base_models import BaseModel
from pipelines.adoption.choices import Choices
from pipelines.adoption.survey import Survey

MAX_SHOWN = 400
"""Characters of a text that are shown: its start and its end."""
_MARGIN = "      | "


def survey_text(found: Survey, model: BaseModel) -> str:
    """What was understood of a log and a model."""
    formats = ", ".join(f"{name} ({count:,})" for name, count in found.counts["formats"].items())
    unread = found.counts["unread"]["columns"]
    columns = [name for name in found.columns if name not in unread]
    lines = [
        model.title(),
        "",
        f"format: {formats}",
        f"columns that are read: {', '.join(columns)}",
        *found.said.splitlines(),
        *_lengths(found),
        "",
    ]
    for number, example in enumerate(found.examples, 1):
        lines += [f"row {number} as the model sees it, {example.what}:", *_quoted("prompt", example.prompt)]
        lines += _quoted("completion", example.completion)
    return "\n".join(lines)


def choices_text(chosen: Choices, model: BaseModel, places: Mapping[str, str]) -> str:
    """What was chosen, and why."""
    others = [name for name in chosen.supported if name not in chosen.methods]
    lines = ["", f"methods: {', '.join(chosen.methods)}"]
    if others:
        lines.append(f"  the log can also feed {', '.join(others)}: --methods {','.join([*chosen.methods, others[0]])}")
    lines += [f"  {reason}" for reason in chosen.reasons]
    lines += ["params.yaml:", *(f"  {key}: {_shown(value)}" for key, value in sorted(chosen.values.items()))]
    lines += [f"  inputs.{key}: {place}" for key, place in places.items()]
    if places.get("base_model", "").startswith("/"):
        size = f"{model.num_bytes / 1e9:.1f} GB"
        lines.append(f"  {size} of weights stay where they are; whoever runs this needs them at that path")
    return "\n".join(lines)


def _lengths(found: Survey) -> Iterator[str]:
    for name, values in (("prompts", found.lengths.prompts), ("completions", found.lengths.completions)):
        if len(values):
            middle, high = np.quantile(values, [0.5, 0.95], method="higher")
            yield f"  {name}: a median of {middle:,} tokens, 95 % up to {high:,}, the longest {values.max():,}"


def _quoted(what: str, text: str) -> list[str]:
    half = MAX_SHOWN // 2
    shown = text if len(text) <= MAX_SHOWN else f"{text[:half]} [...] {text[-half:]}"
    return [f"    {what}", *(f"{_MARGIN}{line}" for line in shown.split("\n"))]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items() if part != {})
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
