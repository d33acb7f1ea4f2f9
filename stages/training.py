"""Stage `training`: a better policy from labelled completions or pairs, by one method.

    python -m stages.training --method bco --params training.bco --base-model models/base --tokens artifacts/tokens ...

What the stages before it computed is read as columns: token ids, log-probabilities under the reference, for BCO
the weights and offsets of the prompts, for KTO the mismatched rows. So training holds one model, and changing one of
its parameters reruns nothing before it. It goes on from its last checkpoint after a kill, to the same bytes.

    PLUMBLINE_LAUNCH="pipelines/accelerate/ddp.yaml --num_processes 2" dvc repro training@bco

trains in several processes, on the same rows in each step.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contracts.files import write_json, write_text
from stages.contracts.launch import launcher
from stages.contracts.stage import Input, Output, Scratch, Section, stage_main


class LoraParams(Section):
    """An adapter of low rank that is trained in place of the model."""

    r: int = Field(16, gt=0)
    """Rank."""
    alpha: int = Field(32, gt=0)
    """Scale; the adapter's output is multiplied by alpha / r."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter, or all but the output head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""


class TrainingParams(Section):
    """What the sections `training.bco`, `training.kto` and `training.dpo` of params.yaml share."""

    start_from: str = "base"
    """Model that training starts from and compares with: `base`, or the method that trained it, such as `sft`."""
    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward; the larger, the closer the policy stays to the reference."""
    learning_rate: float = Field(1e-6, gt=0)
    """Learning rate after warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    warmup_steps: float = Field(0, ge=0)
    """Optimizer steps of warm-up; below 1, their share of all steps."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the rows."""
    max_steps: int = -1
    """Optimizer steps; -1 takes as many as the epochs have."""
    per_device_train_batch_size: int = Field(8, gt=0)
    """Rows of a forward pass; several processes share them."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Batches in one optimizer step."""
    optim: str = "adamw_torch_fused"
    """Optimizer, by its name in transformers."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of weights other than biases and norms."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Norm that gradients are clipped to; 0 clips none."""
    seed: int = 42
    """Seed of the order of the rows, of dropout and of new adapters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are held in."""
    bf16: bool = False
    """Whether to compute in bfloat16."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and costs time."""
    disable_dropout: bool = True
    """Whether the model's dropout is off."""
    lora: LoraParams | None = None
    """The adapter to train; null trains the whole model."""
    logging_steps: int = Field(10, gt=0)
    """Optimizer steps between two points of the curves."""
    save_steps: int = Field(200, ge=0)
    """Optimizer steps between two checkpoints, from which a killed run goes on; 0 writes none."""
    report_to: list[Literal["tensorboard", "dvclive"]] = Field(default_factory=list)
    """Trackers that follow the run, below .cache/tracking; they change no output."""


class BCOTrainingParams(TrainingParams):
    """Section `training.bco` of params.yaml."""

    reward_shift: Literal["pooled", "balanced"] = "pooled"
    """Mean that rewards are compared with: of all rows, or of the means of desired and of undesired ones."""
    reward_shift_decay: float = Field(1.0, gt=0, le=1)
    """What older rewards count in that mean after each micro-batch, relative to before; 1 forgets nothing."""


class KTOTrainingParams(TrainingParams):
    """Section `training.kto` of params.yaml."""

    loss_type: str = "kto"
    """kto, apo_zero_unpaired, or "module:function" for a loss of your own."""
    desirable_weight: float = Field(1.0, ge=0)
    """What the losses of desired rows are multiplied by."""
    undesirable_weight: float = Field(1.0, ge=0)
    """What those of undesired rows are multiplied by."""


class DPOTrainingParams(TrainingParams):
    """Section `training.dpo` of params.yaml."""

    loss_type: str = "sigmoid"
    """sigmoid, robust, hinge, ipo, exo_pair, nca_pair, apo_zero, apo_down, discopop, bco_pair, kto_pair, simpo, cpo,
    orpo, or "module:function" for a loss of your own."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs whose two labels are taken to be swapped."""
    reference_free: bool = False
    """Whether all completions are taken to be as likely as each other under the reference."""
    ipo_averages: bool = True
    """Whether IPO's log-ratios are means over the tokens of a completion."""
    simpo_gamma: float = Field(0.5, ge=0)
    """Margin that SimPO wants between two rewards."""
    cpo_alpha: float = Field(1.0, ge=0)
    """Weight of the likelihood of the chosen completion in CPO."""
    discopop_tau: float = Field(0.05, gt=0)
    """Width of DiscoPOP's passage from its logistic to its exponential part."""


def run(
    *,
    method: Literal["bco", "kto", "dpo"],
    base_model: Input,
    tokens: Input,
    reference_logps: Input,
    density_ratios: Input | None = None,
    mismatched_reference_logps: Input | None = None,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: BCOTrainingParams | KTOTrainingParams | DPOTrainingParams,
) -> None:
    """Train the policy on the labelled rows or the pairs of the training split.

    Args:
        method: module of `stages.trainers` that has the trainer.
        base_model: `base_model` artifact, the policy's start.
        tokens: `tokens` artifact.
        reference_logps: `reference_logps` artifact, in the order of `tokens`.
        density_ratios: `density_ratios` artifact; None weighs all prompts alike.
        mismatched_reference_logps: `reference_logps` artifact of the mismatched rows; None for a method without them.
        model: folder to write: weights or adapter, tokenizer, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last point of the curves.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: how to train.

    Raises:
        ContractError: an artifact is missing, or `reference_logps` isn't of these `tokens`.
        ValueError: the rows have one label only, a prompt has no density ratio, or a loss isn't finite.
    """
    from stages.models.loading import load_causal_lm, load_tokenizer
    from stages.trainers.artifact_rows import labelled_training_rows, paired_training_rows
    from stages.trainers.checkpoints import last_whole_checkpoint
    from stages.trainers.processes import shard_on_cpu, whole_weights
    from stages.trainers.tracking import tracker_callbacks, tracking_folder

    trainer_class = import_module(f"stages.trainers.{method}").TRAINER
    if len(trainer_class.sequences) == 2:
        rows, counts = paired_training_rows(tokens, reference_logps)
    else:
        rows, counts = labelled_training_rows(tokens, reference_logps, density_ratios, mismatched_reference_logps)
    print(f"training: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    args = trainer_class.config_class(str(scratch), **_arguments(params))
    shard_on_cpu(args)
    trainer = trainer_class(
        load_causal_lm(base_model, dtype=params.dtype),
        args=args,
        train_dataset=rows,
        processing_class=load_tokenizer(base_model),
        callbacks=tracker_callbacks(params.report_to, tracking_folder(scratch)),
        peft_config=_adapter(params.lora),
    )
    checkpoint = last_whole_checkpoint(scratch)
    if checkpoint is not None:
        print(f"going on from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    weights = whole_weights(trainer.accelerator, trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    curves = _curves(trainer.state.log_history)
    _write_model(trainer, weights, model, base_model, params)
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    points = {name: curves.iloc[i].dropna().drop("step").to_dict() for name, i in (("first", 0), ("last", -1))}
    write_json(metrics, {"method": method, "rows": counts, "steps": trainer.state.global_step, **points})


def _arguments(params: TrainingParams) -> dict[str, Any]:
    """The section as arguments of the method's config."""
    from stages.models.devices import default_device
    from stages.trainers.processes import rows_per_process

    own = {"start_from", "lora", "dtype", "report_to", "gradient_checkpointing", "save_steps"}
    return {
        **params.model_dump(exclude=own),
        "per_device_train_batch_size": rows_per_process(params.per_device_train_batch_size),
        "activation_checkpointing": params.gradient_checkpointing,
        "save_strategy": "steps" if params.save_steps else "no",
        "save_steps": params.save_steps or 500,
        "save_total_limit": 2,
        "use_cpu": default_device().type == "cpu",
        "dataloader_pin_memory": default_device().type == "cuda",
        "logging_first_step": True,
        "max_length": None,
        "max_prompt_length": None,
    }


def _adapter(lora: LoraParams | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )


def _curves(history: list[dict[str, Any]]) -> Any:
    """Points of the log as a table, one row per point; the line at the end, with clocks in it, is left out."""
    import pandas as pd

    points = pd.DataFrame([line for line in history if "loss" in line])
    first = ["step", "epoch", "loss"]
    return points[first + sorted(set(points.columns) - set(first))]


def _write_model(trainer: Any, weights: Any, folder: Path, base_model: Path, params: TrainingParams) -> None:
    from stages.models.reference import read_reference, write_lineage

    reference = read_reference(base_model)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(policy, "peft_config", {})
    for adapter in adapters.values():
        # Else peft writes the folder that the base was read from, which on another machine is another one, and the
        # names of layers in the order of a set, which changes from process to process.
        adapter.target_modules = sorted(adapter.target_modules)
        adapter.base_model_name_or_path = reference.repository or reference.path or base_model.name
    # The vocabulary is the base's; to find that out by itself, peft would ask the hub.
    policy.save_pretrained(folder, state_dict=weights, **({"save_embedding_layers": False} if adapters else {}))
    trainer.processing_class.save_pretrained(folder)
    facts = {"beta": params.beta, "reward_shift": trainer.reward_shift(), "state": trainer.method_state()}
    write_lineage(folder, base_model, method=trainer.method, **facts)
    write_text(folder / "README.md", trainer.card(base_model=reference.repository))


if __name__ == "__main__":
    stage_main(run, launcher=launcher)
