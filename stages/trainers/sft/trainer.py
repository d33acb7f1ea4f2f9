"""Supervised fine-tuning (SFT): a model learns to continue texts, or to answer as demonstrations do.

The noise on embeddings that `neftune_noise_alpha` asks for is that of https://arxiv.org/abs/2310.05914.
"""

import dataclasses
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import has_length

from stages.models.documents import keeps_documents_apart
from stages.models.pointer import precision_of
from stages.rows.given import rows_of
from stages.rows.label_collation import LabelCollator
from stages.rows.raw import LeftOut
from stages.trainers.core.arguments import DocumentedArguments, documented, settle
from stages.trainers.core.given import either, name_of, tokenizer_given, tokenizer_of
from stages.trainers.core.job import Job
from stages.trainers.core.policy import load_model, prepare_policy, prepared_init
from stages.trainers.core.seeding import set_seed
from stages.trainers.core.token_loss import TokenLossTrainer
from stages.trainers.sft.data import PACKING_KWARGS, PackingStrategy, SFTData


@documented()
class SFTConfig(DocumentedArguments):
    """Arguments of `SFTTrainer` besides those of its constructor; plain `TrainingArguments` do as well."""

    completion_only_loss: bool | None = None
    """Whether completions alone are learned from, and prompts not. None does so for rows that are encoded already and
    say where their prompt ends, and learns all of a raw row."""
    assistant_only_loss: bool = False
    """Whether of conversations only what the assistant says is learned: every turn of `messages`, and of a prompt with
    its completion those of the completion, or with `completion_only_loss=False` those of the prompt too."""
    packing: bool = False
    """Whether rows hold several texts."""
    packing_strategy: PackingStrategy | None = None
    """How texts share rows: "bfd" (best fit, decreasing) and "bfd_split" keep them whole and unseen by each other, and
    of one that is longer than a row leave out the end or put it into further rows; "wrapped" puts them one behind the
    other and cuts where a row ends. None takes "bfd" where `packing` stands here, and where it is an argument of the
    trainer what that documents, "wrapped"."""
    eval_packing: bool | None = None
    """Whether rows of evaluation are packed. None does as in training."""
    padding_free: bool = False
    """Whether the rows of a batch are laid end to end without padding; the model must keep them apart by positions."""
    max_length: int | None = None
    """The same as the trainer's `max_seq_length`."""
    dataset_text_field: str | None = None
    """The same as the trainer's; so are the next two."""
    dataset_num_proc: int | None = None
    model_init_kwargs: dict[str, Any] | None = None
    disable_dropout: bool = False
    """Whether dropout is off; that of an adapter belongs to its own configuration."""

    method_fields: ClassVar[tuple[str, ...]] = (
        "completion_only_loss",
        "assistant_only_loss",
        "packing_strategy",
        "neftune_noise_alpha",
    )


class SFTTrainer(TokenLossTrainer):
    """Trains a causal language model to continue texts as they stand in a dataset.

    Rows are texts (of `dataset_text_field` or `formatting_func`), conversations (`messages`, `conversations`, or
    `prompt` and `completion`, through the tokenizer's chat template, and perhaps `weight`), or rows with the columns
    that the stages make (`input_ids`, `prompt_length`, `weight`). An EOS stands behind each text that isn't cut, and
    is learned whatever the tokenizer pads with.

    Args:
        model: a model, or the folder or repository of one. None if `model_init` makes it.
        args: `SFTConfig`, or plain `TrainingArguments`. None takes the defaults, in the folder tmp_trainer.
        data_collator: makes a batch of encoded rows; `DataCollatorForCompletionOnlyLM` learns from answers alone. None
            pads on the right.
        train_dataset: a dataset of such rows, or a `ConstantLengthDataset`.
        eval_dataset: the same for evaluation, or several by name.
        tokenizer: the tokenizer; None loads the one that belongs to the model.
        model_init: makes the model anew at each call of `train`.
        compute_metrics: called with logits and labels of all rows of an evaluation.
        callbacks: called besides the usual ones.
        optimizers: optimizer and schedule to use in place of those that `args` describe.
        preprocess_logits_for_metrics: called with logits and labels before they are kept for `compute_metrics`.
        peft_config: adapter to lay on the model; None trains the model itself.
        dataset_text_field: column of the texts.
        packing: whether rows hold several texts; see `ConstantLengthDataset`.
        formatting_func: gives texts: with packing, one for the row that it is called with, else a list for columns of
            several rows.
        max_seq_length: tokens of a row, at most. None takes what the tokenizer says, up to 1024.
        infinite: deprecated, and without effect: `args` say how long training takes.
        num_of_sequences: rows that are packed together.
        chars_per_token: characters that a token has on average, by which texts are gathered for that.
        dataset_num_proc: processes that encode texts which aren't packed. None takes one.
        dataset_batch_size: rows that are encoded together; 0 or None takes all.
        neftune_noise_alpha: strength of noise on the embeddings while training; None adds none.
        model_init_kwargs: arguments of `from_pretrained` where the model is given by name.
        dataset_kwargs: `add_special_tokens` (True), `append_concat_token` (True; the EOS behind each text), and with
            packing `shuffle` (True), `seed` (that of `args`) and `keep_documents_apart` (False: texts follow each other
            and are cut where a row ends; True: each stays whole and sees no other one).
        processing_class: today's name of `tokenizer`.

    Raises:
        ValueError: arguments contradict each other, a dataset can't be used, or the model can't keep documents apart.
    """

    config_class: ClassVar[type[SFTConfig]] = SFTConfig
    method = "sft"
    title = "Supervised fine-tuning (SFT)"
    paper = "https://arxiv.org/abs/2203.02155"

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., Any] | None = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        dataset_text_field: str | None = None,
        packing: bool | None = False,
        formatting_func: Callable[..., Any] | None = None,
        max_seq_length: int | None = None,
        infinite: bool | None = None,
        num_of_sequences: int | None = 1024,
        chars_per_token: float | None = 3.6,
        dataset_num_proc: int | None = None,
        dataset_batch_size: int | None = 1000,
        neftune_noise_alpha: float | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        dataset_kwargs: dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        args = SFTConfig("tmp_trainer") if args is None else args
        settle(args)
        tokenizer = either("tokenizer", tokenizer, "processing_class", processing_class)
        model_init_kwargs = _either("model_init_kwargs", model_init_kwargs, args)
        _check_arguments(model, model_init, model_init_kwargs, args)
        _set_noise(args, neftune_noise_alpha)
        if getattr(args, "padding_free", False) and compute_metrics is not None:
            raise ValueError(
                "padding_free: expected no compute_metrics, which is called with rows, found one; leave one out"
            )
        if infinite is not None:
            warnings.warn(
                "infinite is deprecated and has no effect; set max_steps or num_train_epochs in args",
                FutureWarning,
                stacklevel=2,
            )
        tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer_given(tokenizer, model)
        self.data = SFTData(
            tokenizer,
            _either("dataset_text_field", dataset_text_field, args),
            formatting_func,
            _either("max_seq_length", max_seq_length, args, field="max_length"),
            bool(packing) or getattr(args, "packing", False),
            1024 if num_of_sequences is None else num_of_sequences,
            3.6 if chars_per_token is None else chars_per_token,
            _either("dataset_num_proc", dataset_num_proc, args),
            dataset_batch_size,
            getattr(args, "completion_only_loss", None),
            bool(args.remove_unused_columns),
            args.seed,
            dataset_kwargs or {},
            _strategy(args, packs=bool(packing)),
            getattr(args, "assistant_only_loss", False),
            getattr(args, "padding_free", False),
        )
        self.eval_data = _of_evaluation(self.data, getattr(args, "eval_packing", None))
        train_dataset, eval_dataset = rows_of(train_dataset, "train_dataset"), rows_of(eval_dataset, "eval_dataset")
        self.data.check(data_collator, train_dataset)
        self.eval_data.check(data_collator, eval_dataset)
        set_seed(args.seed)
        self.left_out: dict[str, LeftOut] = {}
        train_rows = self._prepared(train_dataset, "train_dataset")
        eval_rows = self._prepared(eval_dataset, "eval_dataset")
        settings = SimpleNamespace(
            disable_dropout=getattr(args, "disable_dropout", False),
            activation_checkpointing=args.activation_checkpointing,
            activation_checkpointing_kwargs=args.activation_checkpointing_kwargs,
            bf16=args.bf16,
        )

        def prepare(made: Any) -> Any:
            return prepare_policy(made, peft_config=peft_config, args=settings)

        if model is not None:
            model = prepare(load_model(model, model_init_kwargs, name="model"))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or self.data.collator(),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            model_init=None if model_init is None else prepared_init(model_init, prepare),
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # Another collator may ask for other labels than the ids.
        self.scores_ids = isinstance(self.data_collator, LabelCollator) and self.label_smoother is None
        self._check_weights()
        self._check_loaded()

    # ---- as a stage ----

    @classmethod
    def of_stage(cls, job: Job) -> Self:
        """The trainer of the rows of a stage, which it packs if asked to."""
        params = job.params
        _check_merge(precision_of(job.base_model).quantisation, params)
        arguments = job.arguments(without={"packing", "seq_length", "merge_lora"})
        arguments["per_device_eval_batch_size"] = params.per_device_train_batch_size
        packing = params.packing != "none"
        return cls(
            job.policy(),
            cls.config_class(**arguments),
            train_dataset=job.train_rows(),
            eval_dataset=job.held_out_rows(),
            **job.beside_the_model(task_type="CAUSAL_LM", tokenizer="tokenizer"),
            packing=packing,
            max_seq_length=params.seq_length if packing else None,
            dataset_kwargs={"keep_documents_apart": params.packing == "apart"} if packing else None,
        )

    def lineage_facts(self, params: Any) -> dict[str, Any]:  # noqa: ARG002 - the same for all
        """What `evaluation` reads, for which the log-ratio to the start is the reward."""
        return {"beta": 1.0, "reward_shift": 0.0}

    def before_saving(self, params: Any) -> bool:
        """Make a trained adapter part of the weights if asked to; whole weights are a base model for others."""
        if params.lora is not None and params.merge_lora:
            trained: Any = self.model
            self.model = trained.merge_and_unload()
        return params.lora is None or bool(params.merge_lora)

    # ---- checks ----

    def _check_weights(self) -> None:
        """Raise ValueError if rows or answers have weights that the loss of the model itself doesn't know."""
        columns = getattr(self.train_dataset, "column_names", None) or []
        if not self.scores_ids and (found := [name for name in ("weight", "span_weights") if name in columns]):
            raise ValueError(
                f"train_dataset: expected no {found[0]} with a data_collator of your own or label smoothing, which "
                "count all tokens alike, found one; leave out the one or the other"
            )

    def _check_loaded(self) -> None:
        """Raise ValueError if the model can't do what it is asked for."""
        policy = self._policy()
        if getattr(getattr(policy, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                "expected a causal language model, found an encoder-decoder; IterativeSFTTrainer takes both"
            )
        packs = self.data.keeps_documents_apart or self.eval_data.keeps_documents_apart
        if not packs and not self.data.padding_free:
            return
        if self.data.padding_free:
            self._check_padding_free()
        elif isinstance(self.data_collator, LabelCollator):
            self.data_collator.flattens = "flash" in str(getattr(policy.config, "_attn_implementation", ""))
        is_whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        # In the types of training: flash attention takes no weights of float32 otherwise.
        with self.accelerator.autocast():
            stay_apart = not is_whole or keeps_documents_apart(policy)
        if not stay_apart:
            raise ValueError(
                f"{'keep_documents_apart' if packs else 'padding_free'}: {type(policy).__name__} lets a document see "
                "the one before it in its row; leave it out, or train with packing=False"
            )

    def _check_padding_free(self) -> None:
        rows: Any = self.train_dataset
        if self.accelerator.num_processes > 1 and rows is not None and not has_length(rows):
            raise ValueError(
                "padding_free: expected a datasets.Dataset in several processes, which share out the rows of a batch "
                "of a stream, found a stream; Dataset.from_list(list(stream)) makes one of a stream that ends"
            )

    # ---- rows ----

    def prepare_rows(self, dataset: Any, name: str) -> Any:
        """Rows of a dataset, encoded and, if asked for, packed."""
        data = self.eval_data if name.startswith("eval_dataset") else self.data
        rows, self.left_out[name] = data.prepared(dataset, name=name)
        return rows


def _either(name: str, given: Any, args: Any, *, field: str | None = None) -> Any:
    """What stands in an argument of the trainer or in its configuration."""
    return either(name, given, f"args.{field or name}", getattr(args, field or name, None))


def _strategy(args: Any, *, packs: bool) -> PackingStrategy | None:
    strategy: PackingStrategy | None = getattr(args, "packing_strategy", None)
    packs_anew = bool(getattr(args, "packing", False) or getattr(args, "eval_packing", False))
    if strategy is not None and not packs and not packs_anew:
        raise ValueError(f"packing_strategy={strategy!r}: expected packing=True beside it, found False; leave it out")
    return "bfd" if strategy is None and packs_anew and not packs else strategy


def _of_evaluation(data: SFTData, packs: bool | None) -> SFTData:
    """How rows of evaluation are made, which may be packed where those of training aren't, and the other way round."""
    if packs is None or packs == data.packing:
        return data
    kept = {name: value for name, value in data.dataset_kwargs.items() if packs or name not in PACKING_KWARGS}
    return dataclasses.replace(data, packing=packs, dataset_kwargs=kept)


def _check_arguments(model: Any, model_init: Any, model_init_kwargs: Any, args: Any) -> None:
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"expected args as SFTConfig or TrainingArguments, found {type(args).__name__}")
    if (model is None) == (model_init is None):
        raise ValueError("expected a model as one of model and model_init, found both or neither")
    if model_init_kwargs and name_of(model) is None:
        # Says so before the dataset is read.
        load_model(model if model is not None else model_init, model_init_kwargs, name="model")


def _check_merge(quantisation: str | None, params: Any) -> None:
    if quantisation is not None and params.lora is not None and params.merge_lora:
        raise ValueError(
            f"training.{params.method or 'sft'}.merge_lora: expected a base model whose weights have all bits of their "
            f"type, found one of {quantisation}, into which an adapter can't be merged without rounding it away; set "
            "merge_lora: false, which saves the adapter, or base_model.quantisation: null"
        )


def _set_noise(args: TrainingArguments, alpha: float | None) -> None:
    if alpha is None:
        return
    if not alpha > 0 or args.neftune_noise_alpha not in (None, alpha):
        raise ValueError(
            f"expected neftune_noise_alpha above 0 and the same in args, found {alpha} and {args.neftune_noise_alpha}"
        )
    args.neftune_noise_alpha = alpha
