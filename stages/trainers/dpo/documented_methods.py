"""What `DPOTrainer` documents besides training: its many arguments, and methods for single rows and batches."""

import dataclasses
import inspect
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from stages.losses.pairs import PairLogps
from stages.losses.sft import IGNORED
from stages.models.frozen import SeparateModel
from stages.rows.batching import stacked_rows
from stages.rows.raw import PAIR, Lengths, encode_batch
from stages.text.encoding import encode_rows
from stages.trainers.core.arguments import settle
from stages.trainers.core.metrics import MetricSums
from stages.trainers.core.preference import PreferenceTrainer
from stages.trainers.core.samples import answers
from stages.trainers.core.scored import Batch

logger = logging.getLogger(__name__)
_FIELD_OF = {"max_target_length": "max_completion_length"}
_OWN = set(inspect.signature(PreferenceTrainer.__init__).parameters) - {"self"}
_DOCUMENTED_LENGTHS = {"max_length": 512, "max_prompt_length": 128}


def arguments_of(trainer_class: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `PreferenceTrainer` from those that `DPOTrainer` documents.

    Args:
        trainer_class: `DPOTrainer` or a subclass.
        given: the arguments by name; names that it doesn't take are passed over.

    Raises:
        ValueError: an argument and the configuration want different things, or there are two tokenizers.
    """
    if given["tokenizer"] is not None and given["processing_class"] is not None:
        raise ValueError("expected the tokenizer once, found tokenizer and processing_class; leave out tokenizer")
    args = given["args"]
    settle(args)
    is_plain = not isinstance(args, trainer_class.config_class)
    config = _config_of(args, trainer_class.config_class) if is_plain else args
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    changes = {}
    for name, parameter in inspect.signature(trainer_class.__init__).parameters.items():
        field, value = _FIELD_OF.get(name, name), given.get(name)
        if field not in fields or name == "args" or value == parameter.default:
            continue
        current = getattr(config, field)
        if current not in (value, fields[field]):
            raise ValueError(
                f"expected one of {name} and args.{field}, found {value!r} and {current!r}; leave out {name}"
            )
        changes[field] = value
    if is_plain:
        for name, length in _DOCUMENTED_LENGTHS.items():
            if given[name] is None:
                logger.warning("%s isn't given: %d is taken; DPOConfig(%s=...) sets it", name, length, name)
                changes[name] = length
    # Without changes the user's own object: what is set in it later is heard.
    config = dataclasses.replace(config, **changes) if changes else config
    found = {name: given[name] for name in _OWN & set(given)}
    adapters = {name: getattr(config, name) for name in ("model_adapter_name", "ref_adapter_name")}
    processing_class = given["processing_class"] if given["tokenizer"] is None else given["tokenizer"]
    return {**found, **adapters, "args": config, "processing_class": processing_class}


def _config_of(args: Any, config_class: Any) -> Any:
    """A configuration with what plain `TrainingArguments` say."""
    if args is None:
        return config_class("tmp_trainer")
    if not isinstance(args, TrainingArguments):
        raise ValueError(
            f"expected args as a {config_class.__name__} or TrainingArguments, found {type(args).__name__}"
        )
    # Compared with the configuration's own defaults: what plain arguments leave at theirs is meant as well.
    defaults = config_class(args.output_dir)
    known = {field.name for field in dataclasses.fields(config_class)}
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    return config_class(
        **{
            name: value
            for name, value in values.items()
            if name in known and (name == "output_dir" or value != getattr(defaults, name))
        }
    )


def tokenize_row(trainer: Any, feature: Mapping[str, Any], model: Any = None) -> dict[str, list[int]]:
    """Ids, masks and labels of a raw pair, cut to the trainer's lengths.

    Args:
        trainer: a `DPOTrainer`.
        feature: `prompt`, `chosen` and `rejected`, plain or conversational.
        model: an encoder-decoder that makes decoder inputs of labels; None makes none.

    Returns:
        For `chosen_` and `rejected_` the input_ids, attention_mask and labels, -100 where nothing is learned; and
        prompt_input_ids and prompt_attention_mask. Of an encoder-decoder, labels of the two and the prompt's.

    Raises:
        ValueError: the pair can't be used; the message says why.
    """
    columns = encode_batch(
        {name: [value] for name, value in feature.items()},
        [0],
        tokenizer=trainer.processing_class,
        lengths=_lengths(trainer.args),
        is_encoder_decoder=trainer.is_encoder_decoder,
        as_pairs=True,
    )
    if columns["left_out"][0]:
        raise ValueError(f"expected a pair that leaves something to learn, found {columns['left_out'][0]}")
    row: dict[str, list[int]] = {}
    prompt: list[int] = []
    for prefix in PAIR:
        ids, length = columns[f"{prefix}input_ids"][0], columns[f"{prefix}prompt_length"][0]
        prompt, answer = ids[:length], ids[length:]
        if trainer.is_encoder_decoder:
            row[f"{prefix}labels"] = answer
            if hasattr(model, "prepare_decoder_input_ids_from_labels"):
                made = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([answer]))
                row[f"{prefix}decoder_input_ids"] = made[0].tolist()
        else:
            labels = [trainer.args.label_pad_token_id] * length + answer
            row |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": [1] * len(ids), f"{prefix}labels": labels}
    return {**row, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


def _lengths(args: Any) -> Lengths:
    return Lengths(args.max_length, args.max_prompt_length, args.max_completion_length, args.truncation_mode)


def build_tokenized_answer(trainer: Any, prompt: str, answer: str) -> dict[str, list[int]]:
    """Ids of a prompt and of an answer as they stand in one text, without special tokens.

    Returns:
        prompt_input_ids and prompt_attention_mask of the prompt, input_ids and attention_mask of the answer.
    """
    tokenizer = trainer.processing_class
    (row,) = encode_rows(tokenizer, prompts=[prompt], completions=[answer], are_complete=[False])
    prompt_ids = row.prompt_ids[1:] if row.starts_with_bos else row.prompt_ids
    return {
        "prompt_input_ids": prompt_ids,
        "prompt_attention_mask": [1] * len(prompt_ids),
        "input_ids": row.completion_ids,
        "attention_mask": [1] * len(row.completion_ids),
    }


def concatenated_inputs(
    batch: Batch,
    is_encoder_decoder: bool = False,
    label_pad_token_id: int = IGNORED,
    padding_value: int = 0,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The chosen and then the rejected rows of a batch, padded to one width.

    Args:
        batch: what `PreferenceCollator` makes of pairs; or tensors (n, t) named `chosen_` and `rejected_` with
            `input_ids`, `attention_mask` and `labels`, of an encoder-decoder `labels` of the two and
            `prompt_input_ids` and `prompt_attention_mask`.
        is_encoder_decoder: whether prompts go to an encoder.
        label_pad_token_id: label of what isn't learned.
        padding_value: id that fills short rows.
        device: where the result goes; None leaves it.

    Returns:
        concatenated_input_ids, concatenated_attention_mask and concatenated_labels; each of shape (2 n, t).
    """
    sources = _documented_tensors(batch, is_encoder_decoder, label_pad_token_id)
    fills = {"input_ids": padding_value, "attention_mask": 0, "labels": label_pad_token_id}
    found = {}
    for name, fill in fills.items():
        sides = stacked_rows([sources[f"{prefix}{name}"] for prefix in PAIR], fill=fill)
        found[f"concatenated_{name}"] = sides.to(device)
    return found


def _documented_tensors(batch: Batch, is_encoder_decoder: bool, label_pad_token_id: int) -> dict[str, Tensor]:
    """Ids, masks and labels of both sides, whichever of the two kinds of batch they stand in."""
    found: dict[str, Tensor] = {}
    for prefix in PAIR:
        has_prompts = is_encoder_decoder and "prompt_input_ids" in batch
        for name in ("input_ids", "attention_mask"):
            found[f"{prefix}{name}"] = batch[f"{'prompt_' if has_prompts else prefix}{name}"]
        if f"{prefix}labels" in batch:
            found[f"{prefix}labels"] = batch[f"{prefix}labels"]
        else:
            ids = batch[f"{prefix}{'decoder_' if is_encoder_decoder else ''}input_ids"]
            is_prompt_or_pad = ~batch[f"{prefix}completion_mask"].bool()
            found[f"{prefix}labels"] = ids.masked_fill(is_prompt_or_pad, label_pad_token_id)
    return found


def get_batch_logps(
    logits: Tensor,
    labels: Tensor,
    average_log_prob: bool = False,
    label_pad_token_id: int = IGNORED,
    is_encoder_decoder: bool = False,
) -> Tensor:
    """Log-probability of each row's labels. Shape (n,).

    Args:
        logits: shape (n, t, vocabulary).
        labels: shape (n, t).
        average_log_prob: whether to give the mean over labels that count, in place of their sum; 0 where none does.
        label_pad_token_id: label that doesn't count.
        is_encoder_decoder: whether logits and labels stand side by side; otherwise logits predict the next label.

    Raises:
        ValueError: the shapes don't fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"expected logits (n, t, v) and labels (n, t), found {logits.shape} and {labels.shape}")
    if not is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    terms = -cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=label_pad_token_id, reduction="none")
    counts = (labels != label_pad_token_id).sum(-1)
    return terms.sum(-1) / counts.clamp(min=1) if average_log_prob else terms.sum(-1)


def concatenated_forward(trainer: Any, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both completions of each pair in one pass that keeps all logits.

    Returns:
        Log-probabilities of chosen and rejected completions, each (n,), and their logits, each (n, t, vocabulary).
    """
    is_encoder_decoder, ignored = trainer.is_encoder_decoder, trainer.args.label_pad_token_id
    inputs = concatenated_inputs(batch, is_encoder_decoder, ignored, device=trainer.args.device)
    labels = inputs["concatenated_labels"]
    forward = {name: inputs[f"concatenated_{name}"] for name in ("input_ids", "attention_mask")}
    if is_encoder_decoder:
        forward["labels"] = labels
    logits = model(**forward, use_cache=False).logits
    logps = get_batch_logps(logits, labels, label_pad_token_id=ignored, is_encoder_decoder=is_encoder_decoder)
    (chosen, rejected), (chosen_logits, rejected_logits) = logps.chunk(2), logits.chunk(2)
    return chosen, rejected, chosen_logits, rejected_logits


def dpo_loss(
    trainer: Any,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    reference_free: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of n pairs with the rewards of their chosen and rejected completions; each of shape (n,).

    Log-probabilities are taken as they are given, as of completions of one token each; a loss that averages over
    tokens wants them averaged. With `reference_free` those of the reference count as 0.
    """
    if reference_free:
        reference_chosen, reference_rejected = torch.zeros_like(policy_chosen), torch.zeros_like(policy_rejected)
    tokens = torch.ones_like(policy_chosen, dtype=torch.long)
    policy, reference = (policy_chosen, policy_rejected), (reference_chosen, reference_rejected)
    losses = trainer.pair_losses(PairLogps(*policy, *reference, tokens, tokens))
    chosen, rejected = (
        (trainer.args.beta * (ours - theirs)).detach() for ours, theirs in zip(policy, reference, strict=True)
    )
    return losses, chosen, rejected


def get_batch_loss_metrics(
    trainer: Any, model: nn.Module, batch: Batch, train_eval: str
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of a batch and its metrics, those of an evaluation with the prefix `eval_`.

    Args:
        trainer: a `DPOTrainer`.
        model: the policy.
        batch: what the trainer's collator made.
        train_eval: "train" or "eval".
    """
    scored = trainer.scored(model, trainer._prepare_inputs(batch))
    result = trainer.preference_loss(*scored, is_training=train_eval == "train")
    sums = MetricSums()
    sums.add(result.metrics)
    prefix = "eval_" if train_eval == "eval" else ""
    return result.losses.mean(), {f"{prefix}{name}": value for name, value in sums.drain(trainer.accelerator).items()}


def get_batch_samples(trainer: Any, model: nn.Module, batch: Batch) -> tuple[list[str], list[str]]:
    """Sampled answers of the policy and of the reference to the prompts of a batch, as texts without special tokens.

    Raises:
        ValueError: there is no reference model to sample from.
    """
    if trainer.reference is None:
        raise ValueError(
            "expected a reference model to sample from, found only its log-probabilities; give ref_model, and "
            "generate_during_eval if they were computed before"
        )
    ids, are_prompts = batch["chosen_input_ids"], batch["chosen_attention_mask"].bool()
    if not trainer.is_encoder_decoder:
        are_prompts = are_prompts & ~batch["chosen_completion_mask"].bool()
    prompts = [row[is_prompt].tolist() for row, is_prompt in zip(ids, are_prompts, strict=True)]
    policy = answers(trainer, model, prompts, least_room=1)
    with trainer.reference.active() as reference:
        return policy, answers(trainer, reference, prompts, least_room=1)


def null_ref_context(trainer: Any) -> AbstractContextManager[Any]:
    """A context in which the policy is the reference; one that changes nothing where the reference is another model."""
    if trainer.reference is None or isinstance(trainer.reference, SeparateModel):
        return nullcontext()
    context: AbstractContextManager[Any] = trainer.reference.active()
    return context
