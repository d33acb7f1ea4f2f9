"""A training as a stage of the graph: its section as arguments, going on after a kill, and what it leaves behind."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from stages.contracts.files import write_json, write_text
from stages.models.devices import default_device
from stages.models.pointer import read_pointer, write_lineage
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS
from stages.trainers.core.processes import rows_per_process, whole_weights
from stages.trainers.core.sections import LoraParams, OptimisationParams

_NOT_OF_THE_CONFIG = {"start_from", "lora", "dtype", "report_to", "gradient_checkpointing", "save_steps"}


def config_arguments(params: OptimisationParams, *, without: Collection[str] = ()) -> dict[str, Any]:
    """A section of params.yaml as arguments of the method's config.

    Args:
        params: the section.
        without: keys that the config doesn't know.
    """
    return {
        **params.model_dump(exclude=_NOT_OF_THE_CONFIG.union(without)),
        "per_device_train_batch_size": rows_per_process(params.per_device_train_batch_size),
        "activation_checkpointing": params.gradient_checkpointing,
        "gradient_checkpointing": params.gradient_checkpointing,
        "save_strategy": "steps" if params.save_steps else "no",
        "save_steps": params.save_steps or 500,
        "save_total_limit": 2,
        "use_cpu": default_device().type == "cpu",
        "dataloader_pin_memory": default_device().type == "cuda",
        "logging_first_step": True,
    }


def adapter_config(lora: LoraParams | None, *, task_type: str) -> Any:
    """The adapter that a section describes.

    Args:
        lora: the section; None trains the whole model.
        task_type: what the model is for, in peft's words.
    """
    if lora is None:
        return None
    # peft is slow to import, and only adapters need it.
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=lora.dropout,
        task_type=task_type,
    )


def train_on(trainer: FeedbackTrainer, scratch: Path) -> None:
    """Train from the last whole checkpoint in `scratch`, or from the start without one."""
    checkpoint = LOOP_CHECKPOINTS.last_whole(scratch)
    if checkpoint is not None:
        print(f"going on from {checkpoint.name}")
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


def write_model(trainer: FeedbackTrainer, folder: Path, base_model: Path, **facts: Any) -> None:
    """Write what was trained: weights or adapter, tokenizer, lineage with `facts`, and the model's page.

    All processes of a training call it together, as `write_curves`; the first one writes.

    Args:
        trainer: after training.
        folder: folder to write.
        base_model: `base_model` artifact that training started from.
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
        adapter.base_model_name_or_path = pointer.repository or pointer.path or base_model.name
        if adapter.modules_to_save:
            adapter.modules_to_save = sorted(adapter.modules_to_save)
    # The vocabulary is the base's; to find that out by itself, peft would ask the hub.
    model.save_pretrained(folder, state_dict=weights, **({"save_embedding_layers": False} if adapters else {}))
    tokenizer: Any = trainer.processing_class
    tokenizer.save_pretrained(folder)
    write_lineage(folder, base_model, method=trainer.method, state=trainer.method_state(), **facts)
    write_text(folder / "README.md", trainer.card(base_model=pointer.repository))
