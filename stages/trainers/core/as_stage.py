"""A training as a stage of the graph: going on after a kill, and what it leaves behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.contracts.files import write_json, write_text
from stages.contracts.stopping import stopping_between_steps
from stages.models.generation import stop_at, stop_ids
from stages.models.pointer import (
    fingerprint,
    precision_of,
    read_pointer,
    tokenizer_fingerprint,
    write_lineage,
    write_pointer,
)
from stages.models.tokenizers import stop_tokens
from stages.text.serving import Serving, with_defaults
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS, written_to
from stages.trainers.core.model_card import rows_on_card
from stages.trainers.core.processes import whole_weights


def train_on(trainer: FeedbackTrainer, scratch: Path) -> None:
    """Train from the last whole checkpoint in `scratch`, or from the start without one."""
    checkpoint = LOOP_CHECKPOINTS.last_whole(scratch)
    if checkpoint is not None:
        print(f"going on from {checkpoint.name}")
    with stopping_between_steps():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def write_curves(trainer: FeedbackTrainer, plots: Path, metrics: Path, **facts: Any) -> None:
    """Write the points of the log as a CSV, one row per point, and the first and last of them with `facts` as JSON.

    The log's line at the end, with clocks in it, is left out.
    """
    if not trainer.accelerator.is_main_process:
        return
    points = pd.DataFrame([line for line in trainer.state.log_history if "loss" in line])
    first = ["step", "epoch", "loss"]
    curves = points[first + sorted(set(points.columns) - set(first))]
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    ends = {name: curves.iloc[i].dropna().drop("step").to_dict() for name, i in (("first", 0), ("last", -1))}
    write_json(metrics, {"method": trainer.method, "steps": trainer.state.global_step, **facts, **ends})


def write_model(
    trainer: FeedbackTrainer,
    folder: Path,
    base_model: Path,
    *,
    params: Any,
    serving: Serving | None = None,
    learned: Mapping[str, Mapping[str, int]] | None = None,
    **facts: Any,
) -> None:
    """Write what was trained: weights or adapter, tokenizer, lineage with `facts`, and the model's page.

    All processes of a training call it together, as `write_curves`; the first one writes.

    Args:
        trainer: after training.
        folder: folder to write.
        base_model: `base_model` artifact that training started from.
        params: section of params.yaml, for the precision that it trained in.
        serving: how the rows were rendered and where they end, if otherwise than the base model's.
        learned: counts of what became of the rows, for the page, `rows` at least; None leaves them out.
        facts: finite JSON values for the lineage.
    """
    spread: Any = getattr(trainer, "model_wrapped", trainer.model)
    weights = whole_weights(trainer.accelerator, spread)
    if not trainer.accelerator.is_main_process:
        return
    pointer = read_pointer(base_model)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", {})
    for adapter in adapters.values():
        # Else peft writes the folder that the base was read from, which on another machine is another one, and the
        # names of layers in the order of a set, which changes from process to process.
        adapter.target_modules = sorted(adapter.target_modules)
        adapter.base_model_name_or_path = pointer.repository or pointer.path or _as_seen(base_model)
        if adapter.modules_to_save:
            adapter.modules_to_save = sorted(adapter.modules_to_save)
    # The vocabulary is the base's; to find that out by itself, peft would ask the hub.
    with written_to(folder):
        model.save_pretrained(folder, state_dict=weights, **({"save_embedding_layers": False} if adapters else {}))
    tokenizer: Any = trainer.processing_class
    _write_serving(tokenizer, model, folder, serving or {}, base_model=base_model)
    precision = precision_of(base_model)._replace(dtype=params.dtype, bf16=params.bf16)._asdict()
    write_lineage(folder, base_model, method=trainer.method, state=trainer.method_state(), precision=precision, **facts)
    write_text(folder / "README.md", trainer.card(base_model=pointer.repository) + rows_on_card(learned or {}))


def _as_seen(folder: Path) -> str:
    """A folder as one that stands in the workspace finds it; the name alone where that would be this machine's."""
    return folder.name if folder.is_absolute() else folder.as_posix()


def _write_serving(tokenizer: Any, model: Any, folder: Path, serving: Serving, *, base_model: Path) -> None:
    """Write the tokenizer, with the template that rows were rendered by, and the tokens at which generation stops."""
    own: Any = serving.get("chat_template", tokenizer.chat_template)
    arguments = serving.get("template_arguments", {})
    if isinstance(own, str):
        own = with_defaults(own, arguments)
    elif isinstance(own, dict):
        own = {name: with_defaults(text, arguments) for name, text in own.items()}
    tokenizer.chat_template = own
    tokenizer.save_pretrained(folder)
    stop_at(model, tokenizer, serving.get("stop_tokens", ()))
    config = getattr(model, "generation_config", None)
    listed = {tokenizer.convert_tokens_to_ids(token) for token in stop_tokens(base_model, tokenizer)}
    # An adapter is saved without: what its base's says holds.
    if config is not None and stop_ids(config, tokenizer) != listed:
        config.save_pretrained(folder)


def write_base_pointer(model: Path, base_model: Path) -> None:
    """Make the folder of the model an artifact `base_model`."""
    base = read_pointer(base_model)
    changes = {
        "source": "scratch",
        "path": None,
        "repository": None,
        "revision": None,
        "fingerprint": fingerprint(model, trust_remote_code=base.trust_remote_code),
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
    }
    write_pointer(model, base.model_copy(update=changes))
