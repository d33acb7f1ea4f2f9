"""The reference of a trainer: which model it is, and the log-probabilities that it gives to rows."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from stages.models.adapters import is_peft_model
from stages.models.frozen import (
    AdapterOff,
    FrozenReference,
    FrozenWeights,
    NamedAdapter,
    PolicyItself,
    SeparateModel,
    frozen_copy,
)
from stages.rows.raw import MISMATCHED, PAIR, reference_column
from stages.trainers.core.given import name_of
from stages.trainers.core.loss_terms import why_live
from stages.trainers.core.policy import load_model
from stages.trainers.core.scored import Batch

logger = logging.getLogger(__name__)


def check_reference_arguments(
    ref_model: Any, init_kwargs: Mapping[str, Any] | None, adapter: str | None, *, policy_adapter: str | None
) -> None:
    """See that what names the reference names one, before anything is loaded.

    Args:
        ref_model: a model, the name of one, or None.
        init_kwargs: arguments of `from_pretrained` for it.
        adapter: name of the policy's adapter that is the reference, or None.
        policy_adapter: name of the adapter that is trained, or None.

    Raises:
        ValueError: arguments contradict each other, or come for a model that isn't loaded.
    """
    if ref_model is not None and adapter is not None:
        raise ValueError("expected the reference as one of ref_model and ref_adapter_name, found both; leave one out")
    if adapter is not None and adapter == policy_adapter:
        raise ValueError(
            f"expected two adapters, found {adapter} as model_adapter_name and as ref_adapter_name: the reference "
            "would move with the policy; load the adapter a second time under another name"
        )
    if ref_model is None and init_kwargs:
        raise ValueError("expected ref_model, a name to load with ref_model_init_kwargs, found none")
    if ref_model is not None and name_of(ref_model) is None:
        load_model(ref_model, init_kwargs, name="ref_model")


def reference_again(ref_model: Any, args: Any) -> Callable[[], Any]:
    """A function that gives the reference that was let go, for rows that come later; None where it is gone for good.

    Args:
        ref_model: what the trainer was given: a model, which isn't kept alive by this, the name of one, or None.
        args: configuration of the trainer.
    """
    if ref_model is None:
        return lambda: None
    if name_of(ref_model) is None:
        return weakref.ref(ref_model)
    return lambda: load_model(ref_model, args.ref_model_init_kwargs, name="ref_model")


def choose_reference(
    ref_model: Any,
    *,
    policy: Callable[[], Any],
    args: Any,
    prepare: Callable[[Any], Any],
    has_new_adapter: bool,
    policy_adapter: str | None,
    reference_adapter: str | None,
    has_column: bool,
) -> FrozenReference | None:
    """The reference that fits what a trainer was given; None where its log-probabilities are all there.

    Args:
        ref_model: a model, the name of one, or None for the policy as it is now.
        policy: gives the policy.
        args: configuration of the trainer.
        prepare: puts a model where it is to run.
        has_new_adapter: whether the trainer laid the policy's adapter itself, so that it says nothing yet.
        policy_adapter: name of the adapter that is trained; None stands for the usual one.
        reference_adapter: name of the adapter that is the reference; None if it is no adapter.
        has_column: whether all rows have their log-probability under the reference.

    Raises:
        ValueError: an adapter is missing.
    """
    if policy_adapter is not None:
        policy().set_adapter(policy_adapter)
    if ref_model is not None:
        if has_column and not args.generate_during_eval:
            return None
        loaded = load_model(ref_model, args.ref_model_init_kwargs, name="ref_model")
        _check_kind(policy(), loaded)
        return SeparateModel(prepare(loaded))
    if is_peft_model(policy()):
        if reference_adapter is not None:
            return NamedAdapter(policy, name=reference_adapter, policy_name=policy_adapter or "default")
        return AdapterOff(policy) if has_new_adapter else FrozenWeights(policy)
    if has_column or args.precompute_ref_log_probs:
        return None if has_column else PolicyItself(policy)
    return SeparateModel(prepare(frozen_copy(policy()).model))


def _check_kind(policy: Any, reference: Any) -> None:
    kinds = [
        bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) for model in (policy, reference)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"expected ref_model of the policy's kind, found is_encoder_decoder {kinds[1]} for its {kinds[0]}; give "
            "the model that the policy started from"
        )


def say_unread(*references: Any, args: Any, needs_reference: bool) -> None:
    """Warn where a reference was given and nothing reads it.

    Args:
        references: what may name one, each perhaps None.
        args: configuration of the trainer.
        needs_reference: whether the method compares with one.
    """
    if not needs_reference and any(given is not None for given in references):
        why = "reference_free is set" if args.reference_free else "the loss reads none"
        logger.warning("the reference that was given has no effect: %s; leave it out", why)


def has_reference_logps(rows: Any, sequences: Sequence[str]) -> bool:
    """Whether `rows`, a dataset or a batch, say what each of their sequences has under the reference."""
    names = rows.column_names if isinstance(rows, Dataset) else rows
    return {reference_column(sequence) for sequence in sequences} <= set(names)


def refuse_columns(rows: Dataset, sequences: Sequence[str], args: Any, *, name: str) -> None:
    """Raise ValueError if rows bring log-probabilities under a reference that `args` want run in each step."""
    why, columns = why_live(args), {reference_column(sequence) for sequence in sequences} & set(rows.column_names)
    if why and columns:
        raise ValueError(
            f"{name}: expected no column {min(columns)} with {why}; remove the column, and give ref_model if the "
            "reference isn't the policy as it is at the start"
        )


def refuse_half(rows: Dataset, sequences: Sequence[str], *, name: str) -> None:
    """Raise ValueError if rows bring the reference's log-probability of one completion of a pair alone."""
    columns = [reference_column(sequence) for sequence in sequences]
    found = [column for column in columns if column in rows.column_names]
    if found and found != columns:
        raise ValueError(
            f"{name}: expected the columns {' and '.join(columns)}, found {found[0]} alone; give both or none"
        )


def without_columns(rows: Dataset, args: Any) -> Dataset:
    """Rows of a stage without the log-probabilities under the reference, if `args` want it run in each step.

    They are those of the model that the stage starts from, which the trainer then copies.
    """
    columns = [name for name in rows.column_names if name in _COLUMNS]
    return rows.remove_columns(columns) if columns and why_live(args) else rows


_COLUMNS = frozenset(map(reference_column, ("", *PAIR, MISMATCHED)))


def read_reference_logps(batch: Batch, sequences: Sequence[str]) -> Tensor:
    """The columns of a batch, one sequence's rows after the other's. Shape (sequences * n,)."""
    return torch.cat([batch[reference_column(sequence)] for sequence in sequences])


def add_reference_logps(
    rows: Dataset,
    sequences: Sequence[str],
    *,
    args: Any,
    collator: Any,
    score: Callable[[Any], Tensor],
    accelerator: Any,
) -> Dataset:
    """`rows` with the columns that `read_reference_logps` reads.

    All rows are scored in their order, whatever `args` say of the batches of training and evaluation.

    Args:
        rows: encoded rows.
        sequences: prefixes of the sequences that lack their column.
        args: of the trainer, for the size of batches and the processes that make them.
        collator: makes a batch of rows.
        score: gives the log-probabilities of a batch, sequence by sequence. Shape (sequences * n,).
        accelerator: gathers what other processes computed.
    """
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_size=args.eval_batch_size,
        sampler=SequentialSampler(rows),
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
    found = []
    for batch in accelerator.prepare(loader):
        by_row = score(batch).view(len(sequences), -1).T
        found.append(accelerator.gather_for_metrics(by_row.contiguous()).cpu())
    for sequence, logps in zip(sequences, torch.cat(found).T, strict=True):
        rows = rows.add_column(reference_column(sequence), logps.numpy())
    return rows
