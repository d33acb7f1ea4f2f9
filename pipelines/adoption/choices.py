"""What params.yaml should say for a log and a model, and why."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.adoption.base_models import BaseModel
from pipelines.adoption.survey import Lengths, Survey
from stages.trainers import METHODS

ENCODER = ("sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf")
"""Repository and commit of the encoder of prompts for models of the hub."""
FEW_PAIRS = 10
"""Prompts with votes of both kinds from which a log is said to hold pairs."""
ENOUGH_HELD_OUT = 200
"""Held-out rows that intervals want; less is held out only where that would be more than MAX_TEST_SHARE."""
MAX_TEST_SHARE = 0.3
MIN_HELD_OUT = 30
"""Held-out rows below which a gate says that there is too little evidence."""
KL_PER_TOKEN = 1.0
"""Nats that a token of an answer may lie from the start's, on average; healthy runs came to half of it."""
MIN_KL = 5.0
MAX_CUT = 0.25
"""Share of rows whose prompt leaves no room for an answer, from which on prompts are cut."""
LARGE = 3e9
"""Parameters from which an adapter is trained in place of the model."""
_RATES: Sequence[tuple[float, Mapping[str, float]]] = (
    (5e7, {"preference": 3e-4, "sft": 3e-4, "reward": 3e-4}),
    (5e8, {"preference": 1e-5, "sft": 5e-5, "reward": 2e-5}),
    (LARGE, {"preference": 1e-6, "sft": 2e-5, "reward": 1e-5}),
    (float("inf"), {"preference": 1e-5, "sft": 1e-4, "reward": 1e-4}),
)
"""Learning rates below a number of parameters; the last line is for adapters, which take larger ones."""


class Choices(NamedTuple):
    """What to write."""

    methods: Sequence[str]
    """Those that the graph keeps."""
    supported: Sequence[str]
    """All that the log can feed."""
    values: Mapping[str, Any]
    """By dotted key of params.yaml, what it should say; a mapping replaces what stands there."""
    reasons: Sequence[str]
    """A sentence each."""


def choose(found: Survey, model: BaseModel, *, methods: Sequence[str] = (), encoder: str | None = None) -> Choices:
    """Choose methods, lengths, the gate, the encoder and how to train.

    Args:
        found: what is known of the log.
        model: the model to improve.
        methods: those to keep in the graph; none takes the one that fits the log best.
        encoder: folder or repository@COMMIT of the encoder of prompts; None chooses.

    Raises:
        ValueError: the log feeds no method, or not one that is asked for.
    """
    supported = supported_methods(found)
    chosen = list(methods) or supported[:1]
    for name in chosen:
        if name not in supported:
            raise ValueError(
                f"--methods: expected methods that this log can feed, {', '.join(supported)}, found {name!r}"
            )
    lengths, reasons = _lengths(found.lengths, model.positions)
    held_out, why_held_out = _test_share(found)
    slice_by = found.slices[0] if found.slices else None
    sampled = lengths["evaluation.max_new_tokens"]
    values: dict[str, Any] = {
        **lengths,
        "normalization.test_share": held_out,
        "evaluation.judge": "none",
        "evaluation.slice_by": slice_by,
        **_encoder(model, encoder),
        "run.methods": chosen,
        "references": ["base"],
    }
    for name in chosen:
        values[f"training.{name}"] = _training(name, found, model)
        values[f"gate.{name}"] = _gate(name, found, sampled=sampled)
    reasons += [
        why_held_out,
        f"results are also shown by {slice_by}" if slice_by else "no column splits prompts into a few slices",
        _why_training(model, sampled=sampled),
    ]
    return Choices(chosen, supported, values, reasons)


def supported_methods(found: Survey) -> list[str]:
    """The methods that the log can feed, the one that fits it best first.

    Raises:
        ValueError: there is none.
    """
    kinds = found.kinds
    thumbs = min(kinds["desired"], kinds["undesired"]) > 0
    by_fit = {
        "dpo": kinds["pairs"] > 0 or found.prompts_of_both >= FEW_PAIRS,
        "bco": thumbs or kinds["pairs"] > 0,
        "kto": thumbs or kinds["pairs"] > 0,
        "reward": kinds["pairs"] > 0 or found.prompts_of_both >= FEW_PAIRS,
        "sft": kinds["pairs"] + kinds["desired"] + kinds["demonstrations"] > 0,
    }
    if kinds["pairs"] < kinds["desired"] + kinds["undesired"]:
        by_fit = {"bco": by_fit["bco"], **by_fit}
    if kinds["demonstrations"] > kinds["pairs"] + kinds["desired"] + kinds["undesired"]:
        by_fit = {"sft": by_fit["sft"], **by_fit}
    supported = [name for name, fits in by_fit.items() if fits]
    if not supported:
        listed = ", ".join(f"{count:,} {name}" for name, count in kinds.items() if count)
        raise ValueError(
            f"no method learns from this log ({listed}): expected votes of both kinds, pairs, liked answers or "
            "demonstrations; where votes stand in another file, put it beside the answers and adopt the folder"
        )
    return supported


def _lengths(lengths: Lengths, positions: int | None) -> tuple[dict[str, Any], list[str]]:
    """Lengths that hold nearly all rows, as far as the model has positions."""
    rows = lengths.rows()
    wanted = _rounded_up(_at(rows, 0.99))
    limit = min(wanted, positions) if positions else wanted
    without_room = float((lengths.prompts >= limit).mean())
    answer = _rounded_up(_at(lengths.completions, 0.9))
    # The longest prompts and answers need not fit together; half of the positions is left for prompts.
    answer = min(answer, positions // 2) if positions else answer
    longest_prompt = limit - answer if without_room > MAX_CUT else None
    cut = float((rows > limit).mean())
    reasons = [f"{limit:,} tokens hold {1 - cut:.1%} of the rows" + (f"; of {cut:.1%} the end is cut" if cut else "")]
    if without_room and not longest_prompt:
        reasons.append(f"{without_room:.1%} leave no room for an answer and are rejected")
    if longest_prompt:
        reasons.append(
            f"{without_room:.0%} of the prompts alone are longer than that: of prompts that don't fit the last "
            f"{longest_prompt:,} tokens are kept"
        )
    if positions and wanted > positions:
        reasons.append(f"the model has no more than {positions:,} positions; one with more would read rows whole")
    return {
        "tokenization.max_length": limit,
        "tokenization.max_prompt_length": longest_prompt,
        "evaluation.max_new_tokens": answer,
    }, reasons


def _at(values: np.ndarray[Any, Any], share: float) -> int:
    return int(np.quantile(values, share, method="higher"))


def _rounded_up(length: int, step: int = 16) -> int:
    return -(-length // step) * step


def _test_share(found: Survey) -> tuple[float, str]:
    rows = sum(found.kinds.values()) - found.kinds["prompts"] or found.kinds["prompts"]
    share = round(min(max(ENOUGH_HELD_OUT / rows, 0.1), MAX_TEST_SHARE), 2)
    expected = int(share * rows)
    enough = "" if expected >= MIN_HELD_OUT else f"; {MIN_HELD_OUT} are the least that a gate decides on"
    return share, f"{share:.0%} of the prompts are held out, some {expected:,} rows{enough}"


def _encoder(model: BaseModel, encoder: str | None) -> dict[str, Any]:
    if encoder is None and model.repository is None:
        return {"prompt_embedding.encoder": "base", "inputs.encoder": "models/base"}
    if encoder is None:
        repository, revision = ENCODER
    else:
        repository, _, revision = encoder.partition("@")
    found = {"prompt_embedding.encoder": repository, "inputs.encoder": "models/base"}
    return {**found, "prompt_embedding.revision": revision} if revision else {**found, "inputs.encoder": repository}


def _training(name: str, found: Survey, model: BaseModel) -> dict[str, Any]:
    kind = name if name in {"sft", "reward"} else "preference"
    size = model.num_parameters
    rate = next(rates[kind] for below, rates in _RATES if size < below)
    rows = _rows_of(name, found)
    in_step = 16 if rows < 1000 else 32
    at_once = next(count for below, count in ((5e7, 16), (5e8, 8), (LARGE, 4), (float("inf"), 2)) if size < below)
    section: dict[str, Any] = {"start_from": "base"}
    if METHODS[name].rows == "labelled" or name == "dpo":
        section["beta"] = 0.1
    section |= {"learning_rate": rate, "num_train_epochs": 1 if rows >= 20_000 else 2 if rows >= 2000 else 3}
    section |= {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": max(in_step // at_once, 1)}
    if size >= 5e7:
        section |= {"warmup_steps": 0.1, "bf16": True, "gradient_checkpointing": True}
    if size >= LARGE:
        section["lora"] = {"r": 16, "alpha": 32}
    return section


def _rows_of(name: str, found: Survey) -> int:
    kinds = found.kinds
    if METHODS[name].rows == "pairs":
        return max(kinds["pairs"], found.prompts_of_both)
    if METHODS[name].rows == "labelled":
        return kinds["desired"] + kinds["undesired"] + 2 * kinds["pairs"]
    return kinds["desired"] + kinds["pairs"] + kinds["demonstrations"]


def _gate(name: str, found: Survey, *, sampled: int) -> dict[str, Any]:
    """Limits by what the evaluation of the method measures on such a log."""
    if name == "reward":
        return {"minimums": {"accuracy": 0.5}}
    labelled = found.kinds["pairs"] + min(found.kinds["desired"], found.kinds["undesired"])
    minimums = {"auc": 0.5, "counts/rows": MIN_HELD_OUT} if labelled else {}
    maximums = {"kl": float(round(max(MIN_KL, KL_PER_TOKEN * sampled)))}
    return {"minimums": minimums, "maximums": maximums}


def _why_training(model: BaseModel, *, sampled: int) -> str:
    how = "an adapter of rank 16 is trained" if model.num_parameters >= LARGE else "all weights are trained"
    return (
        f"{how}, at a rate for {model.num_parameters:,} parameters; the gate lets each of the {sampled:,} tokens that "
        f"an evaluated answer can have lie {KL_PER_TOKEN:g} nats from the start's"
    )
