"""Stage `training`: a better model from people's feedback, by one method.

    dvc repro training@bco

What the method learns from stands in `training_rows`, with all that the stages before computed of it. So training holds
one model, and changing one of its parameters reruns nothing before it. It goes on from its last checkpoint after a
kill, to the same bytes. `stages.trainers.METHODS` names the methods.

    PLUMBLINE_LAUNCH="pipelines/accelerate/ddp.yaml --num_processes 2" dvc repro training@bco

trains in several processes, on the same rows in each step.
"""

from typing import Any

from stages.contracts.launch import launcher
from stages.contracts.stage import Input, Output, Scratch, Section, stage_main
from stages.trainers import method_of


def run(
    *,
    method: str,
    base_model: Input,
    tokens: Input,
    rows: Input,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: Section,
) -> None:
    """Train by the method on the rows of the training split.

    Args:
        method: name in `stages.trainers.METHODS`.
        base_model: `base_model` artifact, where training starts, and the reference.
        tokens: `tokens` artifact.
        rows: `training_rows` artifact of these tokens, of the kind that the method learns from.
        model: folder to write: weights or adapter, tokenizer, model card, lineage, and of a model that other methods
            may start from the pointer by which it is a base model.
        metrics: JSON to write: what was trained on, the first and last point of the curves, and of a method that
            measures it the held-out loss before and after.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: how to train; the section of the method.

    Raises:
        ContractError: an artifact is missing or damaged, or the rows are of other tokens or of another kind.
        ValueError: the rows can't be learned from, or a loss isn't finite.
    """
    from stages.contracts.files import tree_digest
    from stages.contracts.tokens import TOKENS
    from stages.models.pointer import read_pointer
    from stages.rows.reading import read_rows
    from stages.text.serving import read_losses, read_serving
    from stages.trainers.core.as_stage import train_on, write_base_pointer, write_curves, write_model
    from stages.trainers.core.job import Job

    said = getattr(params, "method", None)
    if said not in {None, method}:
        raise ValueError(f"expected a section of {method}, found one that says method: {said}; mend dvc.yaml")
    read_pointer(base_model)  # needed when the model is written, which is hours later
    found = read_rows(rows, tokens, kind=method_of(method).rows)
    counts = found.counts["train"]
    print(f"training: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    serving = read_serving(tokens, TOKENS)
    trainer = method_of(method).trainer_class().of_stage(Job(base_model, found, scratch, params, serving))
    before = _held_out_loss(trainer)
    train_on(trainer, scratch)
    held_out = {} if before is None else {"held_out": {"before": before, "after": _held_out_loss(trainer)}}

    is_base = trainer.before_saving(params)
    facts = {"rows": tree_digest(rows), **trainer.lineage_facts(params)}
    losses = read_losses(tokens, TOKENS)
    learned = {"encoded": losses, "rows": counts}
    write_model(trainer, model, base_model, serving=serving, params=params, learned=learned, **facts)
    if is_base:
        write_base_pointer(model, base_model)
    write_curves(
        trainer,
        plots,
        metrics,
        rows=counts,
        **({"encoded": losses} if losses else {}),
        **trainer.start_facts(),
        **held_out,
    )


def _held_out_loss(trainer: Any) -> float | None:
    """Mean loss of the held-out rows, in nats; None for a method that measures none."""
    return None if trainer.eval_dataset is None else float(trainer.evaluate()["eval_loss"])


if __name__ == "__main__":
    stage_main(run, launcher=launcher, method_of=method_of)
