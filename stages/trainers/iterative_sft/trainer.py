"""Iterative supervised fine-tuning: steps on rows that are made between them, such as the best of sampled answers.

Best-of-n rounds of this kind are described as RAFT in https://arxiv.org/abs/2304.06767.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped] # the package ships no types
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.neftune import activate_neftune, deactivate_neftune
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.losses.sft import IGNORED
from stages.rows.collation import default_collator
from stages.rows.given import rows_of
from stages.rows.label_collation import LabelCollator
from stages.text.truncation import TruncationMode
from stages.trainers.core.arguments import DocumentedArguments, settle
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS
from stages.trainers.core.given import tokenizer_given
from stages.trainers.core.metrics import MetricSums, Share, share_of
from stages.trainers.core.policy import load_model
from stages.trainers.core.seeding import set_seed
from stages.trainers.core.token_loss import TokenLossTrainer
from stages.trainers.iterative_sft.rows import StepRows, labels_are_ids

_MANY_STEPS = 2**31


class IterativeSFTTrainer(TokenLossTrainer):
    """Takes optimizer steps on the rows that it is handed, call by call, and nothing else.

    All calls are one training: the optimizer, the learning rate schedule over `args.max_steps`, the log and the
    checkpoints go on from call to call. Between calls the model is in evaluation mode, ready to generate.

    Args:
        model: a causal language model or an encoder-decoder, or the folder or repository of one.
        args: arguments of the training; `max_steps` counts the optimizer steps of all calls. A checkpoint that
            `resume_from_checkpoint` names is gone on from in the first call.
        tokenizer: the tokenizer of the model.
        optimizers: optimizer and schedule to use in place of those that `args` describe.
        data_collator: makes a batch of rows with `input_ids`, `attention_mask` and `labels`; None pads on the right.
        eval_dataset: encoded rows for evaluation: `input_ids`, and `labels` or `prompt_length`.
        max_length: tokens of a row, at most. None cuts none.
        truncation_mode: whether a row that is cut keeps its end ("keep_end") or its start ("keep_start").
        preprocess_logits_for_metrics: called with logits and labels before they are kept for `compute_metrics`.
        compute_metrics: called with logits and labels of all rows of an evaluation.
        optimize_device_cache: whether memory that a call has used is given back to the device behind it.

    Raises:
        ValueError: an argument is missing or can't be used, or it isn't said how long the training is.
    """

    config_class: ClassVar[type[DocumentedArguments]] = DocumentedArguments
    method = "iterative_sft"
    title = "Iterative supervised fine-tuning"
    paper = "https://arxiv.org/abs/2304.06767"

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: PreTrainedModel | str | Path | None = None,
        args: TrainingArguments | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizers: Any = (None, None),
        data_collator: Any = None,
        eval_dataset: Any = None,
        max_length: int | None = None,
        truncation_mode: str | None = "keep_end",
        preprocess_logits_for_metrics: Any = None,
        compute_metrics: Any = None,
        optimize_device_cache: bool | None = False,
    ) -> None:
        settle(args)
        args = _checked_arguments(args, optimizers)
        tokenizer = tokenizer_given(tokenizer, model)
        eval_dataset = rows_of(eval_dataset, "eval_dataset")
        if tokenizer is None or model is None:
            raise ValueError(f"expected a model and its tokenizer, found {type(model).__name__} and {tokenizer}")
        self.step_rows = StepRows(tokenizer, max_length, cast(TruncationMode, truncation_mode))
        self.step_rows.check()
        _check_evaluation(eval_dataset)
        set_seed(args.seed)
        loaded = load_model(model, None, name="model")
        self.is_encoder_decoder = bool(getattr(loaded.config, "is_encoder_decoder", False))
        self.step_rows = self.step_rows._replace(is_encoder_decoder=self.is_encoder_decoder)
        pad_id = default_collator(tokenizer, padding_value=None, is_encoder_decoder=False).pad_id
        super().__init__(
            model=loaded,
            args=args,
            data_collator=data_collator or LabelCollator(pad_id, is_encoder_decoder=self.is_encoder_decoder),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._can_score_ids = (
            not self.is_encoder_decoder
            and isinstance(self.data_collator, LabelCollator)
            and self.label_smoother is None
        )
        self.scores_ids = self._can_score_ids
        self.optimize_device_cache = optimize_device_cache
        self.num_calls = 0
        """Calls of `step` that are complete, those before a resumed checkpoint included."""
        self._step_sums = MetricSums()
        self._model_in_training: Any = None  # wrapped and ready; None before the first call
        self._start_step = self._steps_of_call = self._steps_to_skip = 0
        self._resumed_from: str | None = None
        self._is_finished = False

    # ---- calls ----

    def step(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        texts: Any = None,
        texts_labels: Any = None,
    ) -> dict[str, Any]:
        """Learn from some rows, once: optimizer steps of `per_device_train_batch_size` rows in shuffled order.

        A text is learned as it is, so that one which is to end says so with an EOS. After resuming, the call that was
        under way when the checkpoint was written, which is number `num_calls`, is made again with its rows and goes on.

        Args:
            input_ids: a tensor of token ids per row.
            attention_mask: a tensor per row, 0 for tokens that aren't there. None keeps all.
            labels: a tensor per row: its ids, or -100 where nothing is learned; of an encoder-decoder, the answer.
                None takes the ids.
            texts: a text per row, in place of `input_ids`.
            texts_labels: a text per row to learn, with as many tokens as the row; of an encoder-decoder, the answer.
                None takes the texts.

        Returns:
            `loss` and `grad_norm` (means over the optimizer steps), `learning_rate` (of the next one), `num_rows`,
            `num_tokens` (that were learned), `global_step`, and the metrics of an evaluation if there was one.

        Raises:
            ValueError: the rows can't be used, or the call takes more steps than `max_steps` has left.
        """
        columns = self.step_rows.read(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            texts=texts,
            texts_labels=texts_labels,
        )
        self.scores_ids = self._can_score_ids and labels_are_ids(columns)
        self._begin()
        self.train_dataset = Dataset.from_dict(columns)
        loader = self.get_train_dataloader()
        # Kept there, the rows of all calls would fill the memory.
        self.accelerator._dataloaders.clear()
        with self._noisy_embeddings():
            self._run(loader)
        num_tokens = sum(label != IGNORED for row in columns["labels"] for label in row[not self.is_encoder_decoder :])
        return self._statistics(num_rows=len(columns["input_ids"]), num_tokens=num_tokens)

    def _begin(self) -> None:
        """Make optimizer and schedule in the first call, and take up a checkpoint."""
        if self._model_in_training is not None:
            return
        checkpoint = self._resumed_from or self.args.resume_from_checkpoint
        if checkpoint is not None:
            self._resumed_from = str(checkpoint)
            self._load_from_checkpoint(self._resumed_from)
        max_steps = self.args.max_steps if self.args.max_steps > 0 else _MANY_STEPS
        self._init_training_state(max_steps, 1, _MANY_STEPS, self._resumed_from, None)
        loop: Any = self  # the steps of the base class have no types
        if self.args.activation_checkpointing:
            kwargs = self.args.activation_checkpointing_kwargs
            loop.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        self._model_in_training, _ = loop._prepare_for_training(max_steps, None, self._resumed_from)
        # What the loop of transformers keeps between the lines of its log.
        self._tr_loss = torch.tensor(0.0, device=self.args.device)
        self._total_loss_scalar = 0.0
        self._globalstep_last_logged = self.state.global_step
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def _run(self, loader: Any) -> None:
        """One pass over `loader`, by the loop of transformers."""
        self._start_step = self.state.global_step - self._steps_to_skip
        self._steps_of_call = math.ceil(len(loader) / self.args.gradient_accumulation_steps)
        if self._start_step + self._steps_of_call > self.state.max_steps:
            raise ValueError(
                f"expected up to max_steps={self.state.max_steps} optimizer steps in all calls, found that this one "
                f"goes up to step {self._start_step + self._steps_of_call}; raise max_steps"
            )
        skipped, self._steps_to_skip = self._steps_to_skip * self.args.gradient_accumulation_steps, 0
        resumed_from, self._resumed_from = self._resumed_from, None
        self.callback_handler.train_dataloader = loader
        self.is_in_train = True
        loop: Any = self  # the steps of the base class have no types
        try:
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
            loop._run_epoch(
                model=self._model_in_training,
                epoch=self.num_calls,
                train_dataloader=loader,
                steps_in_epoch=len(loader),
                num_update_steps_per_epoch=self._steps_of_call,
                trial=None,
                ignore_keys_for_eval=None,
                start_time=time.time(),
                resume_from_checkpoint=resumed_from,
                epochs_trained=self.num_calls if resumed_from else -1,
                steps_trained_in_current_epoch=skipped,
            )
        finally:
            self.is_in_train = False
            loop.model.train(mode=False)
        self.num_calls += 1
        if self.optimize_device_cache:
            clear_device_cache(garbage_collection=True)
        if self.state.global_step >= self.state.max_steps:
            self.finish()

    @contextmanager
    def _noisy_embeddings(self) -> Iterator[None]:
        """The noise of `neftune_noise_alpha`, for the length of a call."""
        if self.neftune_noise_alpha is None:
            yield
            return
        hook = activate_neftune(self.model, self.neftune_noise_alpha, self.accelerator)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            deactivate_neftune(self.model, hook, self.accelerator)  # type: ignore[no-untyped-call] # transformers

    def _statistics(self, *, num_rows: int, num_tokens: int) -> dict[str, Any]:
        evaluated: dict[str, Any] = {}
        # From the end, or a run of many calls would read its whole log in each of them.
        for line in takewhile(lambda line: line["step"] > self._start_step, reversed(self.state.log_history)):
            evaluated = evaluated or {name: value for name, value in line.items() if name.startswith("eval_")}
        return {
            **self._step_sums.drain(self.accelerator),
            "learning_rate": self._get_learning_rate(),
            "num_rows": num_rows,
            "num_tokens": num_tokens,
            "global_step": self.state.global_step,
            **evaluated,
        }

    def finish(self) -> None:
        """Close progress bar and trackers; done by itself behind the last of `max_steps`."""
        if not self._is_finished and self._model_in_training is not None:
            self._is_finished = True
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch forward and backward; gives its share of the step's loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        steps = torch.tensor(1.0 / self.current_gradient_accumulation_steps, dtype=torch.float64)
        self._step_sums.add({"loss": Share(loss, steps)})
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._step_sums.add({"grad_norm": share_of(torch.as_tensor(float(norm)).reshape(1))})
        return norm

    # ---- checkpoints ----

    def resume(self, checkpoint: str | Path | None = None) -> None:
        """Go on from a checkpoint: `num_calls` then says how many calls it holds.

        Args:
            checkpoint: its folder; None takes the last whole one in `args.output_dir`.

        Raises:
            ValueError: there is none, or a call was made already.
        """
        found = LOOP_CHECKPOINTS.last_whole(Path(self.args.output_dir)) if checkpoint is None else Path(checkpoint)
        if found is None or self._model_in_training is not None:
            raise ValueError(
                f"expected a whole checkpoint in {self.args.output_dir} to go on from, before the first call of step, "
                f"found {'none' if found is None else 'a call'}"
            )
        self._resumed_from = str(found)
        self._begin()

    def save_checkpoint(self) -> Path:
        """Write a checkpoint of weights, optimizer, schedule and log, and give its folder."""
        self._begin()
        self._save_checkpoint(cast(Any, self.model), trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def method_state(self) -> dict[str, Any]:
        """Complete calls, and the steps of the one that is under way."""
        if not self.is_in_train:
            return {"num_calls": self.num_calls, "steps_in_call": 0}
        steps = self.state.global_step - self._start_step
        if steps == self._steps_of_call:
            return {"num_calls": self.num_calls + 1, "steps_in_call": 0}
        return {"num_calls": self.num_calls, "steps_in_call": steps}

    def _can_leave(self) -> bool:
        # Behind the last step of a call its statistics are still to be given; who made the call then leaves.
        return self.state.global_step < self._start_step + self._steps_of_call

    def _kept_sums(self) -> dict[str, MetricSums]:
        return {**super()._kept_sums(), "call_sums": self._step_sums}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty one starts anew."""
        self.num_calls = state.get("num_calls", 0)
        self._steps_to_skip = state.get("steps_in_call", 0)


def _checked_arguments(args: Any, optimizers: Any) -> TrainingArguments:
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"expected args as TrainingArguments, found {type(args).__name__}")
    if args.max_steps <= 0 and (optimizers[0] is None or optimizers[1] is None):
        raise ValueError(
            f"expected max_steps in args, or optimizers with a schedule, found max_steps={args.max_steps}; it "
            "counts the optimizer steps of all calls"
        )
    return args


def _check_evaluation(rows: Any) -> None:
    for dataset in rows.values() if isinstance(rows, Mapping) else [rows]:
        if dataset is not None and "input_ids" not in getattr(dataset, "column_names", ()):
            raise ValueError(
                f"eval_dataset: expected a datasets.Dataset with a column input_ids, found {type(dataset).__name__} "
                f"{getattr(dataset, 'column_names', '')}"
            )
