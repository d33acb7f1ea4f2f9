"""Stage `training`: a better policy from labelled completions or pairs, by one method.

    python -m stages.training --method bco --params training.bco --base-model models/base --tokens artifacts/tokens ...

What the stages before it computed is read as columns: token ids, log-probabilities under the reference, for BCO
the weights and offsets of the prompts, for KTO the mismatched rows. So training holds one model, and changing one of
its parameters reruns nothing before it. It goes on from its last checkpoint after a kill, to the same bytes.

    PLUMBLINE_LAUNCH="pipelines/accelerate/ddp.yaml --num_processes 2" dvc repro training@bco

trains in several processes, on the same rows in each step.
"""

from importlib import import_module
from typing import Literal

from pydantic import Field

from stages.contracts.launch import launcher
from stages.contracts.stage import Input, Output, Scratch, stage_main
from stages.trainers.core.sections import OptimisationParams


class TrainingParams(OptimisationParams):
    """What the sections `training.bco`, `training.kto` and `training.dpo` of params.yaml share."""

    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward; the larger, the closer the policy stays to the reference."""


class BCOTrainingParams(TrainingParams):
    """Section `training.bco` of params.yaml."""

    reward_shift: Literal["pooled", "balanced"] = "balanced"
    """Mean that rewards are compared with: of all rows, or of the means of desired and of undesired ones, which classes
    of different sizes don't pull to the larger one's side."""
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
    from stages.models.loading import load_causal_lm
    from stages.models.pointer import read_pointer
    from stages.models.tokenizers import load_tokenizer
    from stages.rows.labelled import labelled_training_rows, paired_training_rows
    from stages.trainers.core.as_stage import adapter_config, config_arguments, train_on, write_curves, write_model
    from stages.trainers.core.processes import shard_on_cpu
    from stages.trainers.core.tracking import tracker_callbacks, tracking_folder

    read_pointer(base_model)  # needed when the model is written, which is hours later
    trainer_class = import_module(f"stages.trainers.{method}").TRAINER
    if len(trainer_class.sequences) == 2:
        rows, counts = paired_training_rows(tokens, reference_logps)
    else:
        rows, counts = labelled_training_rows(tokens, reference_logps, density_ratios, mismatched_reference_logps)
    print(f"training: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    args = trainer_class.config_class(str(scratch), **config_arguments(params), max_length=None, max_prompt_length=None)
    shard_on_cpu(args)
    trainer = trainer_class(
        load_causal_lm(base_model, dtype=params.dtype),
        args=args,
        train_dataset=rows,
        processing_class=load_tokenizer(base_model),
        callbacks=tracker_callbacks(params.report_to, tracking_folder(scratch)),
        peft_config=adapter_config(params.lora, task_type="CAUSAL_LM"),
    )
    train_on(trainer, scratch)
    write_model(trainer, model, base_model, beta=params.beta, reward_shift=trainer.reward_shift())
    write_curves(trainer, plots, metrics, rows=counts)


if __name__ == "__main__":
    stage_main(run, launcher=launcher)
