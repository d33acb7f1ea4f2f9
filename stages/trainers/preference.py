"""The core that preference methods share: forward, reference, batches, metrics, checkpoints.

A method adds a config, its `preference_loss`, and what state it keeps between steps.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from stages.contracts.files import write_text
from stages.models.frozen import PolicyItself
from stages.models.logprobs import CompletionLogps, completion_logps
from stages.models.seq2seq import seq2seq_logps
from stages.trainers.checkpoints import last_whole_checkpoint, read_state, write_state
from stages.trainers.collation import default_collator
from stages.trainers.config import PreferenceConfig
from stages.trainers.metrics import MetricSums, Share
from stages.trainers.model_card import card_of
from stages.trainers.policy import (
    choose_reference,
    is_encoder_decoder,
    is_peft_model,
    load_model,
    prepare_policy,
    prepared_init,
)
from stages.trainers.rows import LeftOut, Lengths, RowReader, is_encoded
from stages.trainers.safeguards import GradientWatch, refuse_non_finite
from stages.trainers.samples import write_samples
from stages.trainers.scored import Batch, PreferenceLoss, Scored, loss_share, num_own_rows
from stages.trainers.seeding import InterleavedSampler, set_seed

Datasets: TypeAlias = Dataset | Mapping[str, Dataset] | None


class PreferenceTrainer(Trainer):
    """Trains a policy on labelled completions against a frozen reference.

    Args:
        model: the policy: a model, or the folder or repository of one. None if `model_init` makes it.
        ref_model: the reference, likewise. None takes the policy as it is at the start: without its adapter if it
            gets one, with frozen copies of the adapter if it comes with one, else a copy of the whole. No model is
            kept where the datasets have `reference_logps`, or `args.precompute_ref_log_probs` computes them.
        args: configuration of the method.
        train_dataset: raw rows, or rows with the columns that the stages make (`input_ids`, `prompt_length`, `label`,
            and what else the method reads). A row has one label; of a pair, both rows are learned from.
        eval_dataset: the same for evaluation, or several by name.
        processing_class: the tokenizer.
        data_collator: makes a batch of encoded rows; None pads them on the right. See `PreferenceCollator` for the
            tensors that a batch holds.
        model_init: makes the model anew at each call of `train`.
        callbacks: called besides the usual ones.
        optimizers: optimizer and schedule to use in place of those that `args` describe.
        preprocess_logits_for_metrics: called with rewards and labels before they are kept for `compute_metrics`.
        peft_config: adapter to lay on the policy; None trains the model itself.
        compute_metrics: called with the reward (predictions) and the label (label_ids) of each row.
        model_adapter_name: adapter that is trained, where the policy has several.
        ref_adapter_name: adapter that is the reference.

    Raises:
        ValueError: arguments contradict each other, or a dataset can't be used.
    """

    config_class: ClassVar[type[PreferenceConfig]]
    """Configuration of the method."""
    method: ClassVar[str]
    """Short name of the method."""
    title: ClassVar[str]
    """Full name of the method."""
    paper: ClassVar[str]
    """URL of its paper."""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of numbers that the method reads besides those that all do."""
    # A batch's loss is a mean over its rows, so that the base class has to divide it by the accumulated batches.
    loss_is_scaled_for_ga = False

    args: Any

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: Any = None,
        ref_model: Any = None,
        args: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Datasets = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        model_init: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        compute_metrics: Any = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
    ) -> None:
        if not isinstance(args, self.config_class):
            raise ValueError(
                f"expected args as a {self.config_class.__name__}, found {type(args).__name__}; it takes the same "
                "arguments and the method's own"
            )
        if (model is None) == (model_init is None) or (ref_model is not None and ref_model is model):
            raise ValueError(
                "expected a policy as one of model and model_init, and as ref_model another model or None; "
                "None takes the policy as it is at the start"
            )
        set_seed(args.seed)
        self.args = args
        self.begin()
        self.is_encoder_decoder = False
        self.tokenizer_of_rows = processing_class
        self.left_out: dict[str, LeftOut] = {}
        self._train_sums, self._eval_sums = MetricSums(), MetricSums()
        self._gradient_watch = GradientWatch()
        self._num_parameters: int | None = None
        if model is not None:
            model = load_model(model, args.model_init_kwargs, name="model")
            came_with_adapter = is_peft_model(model) and peft_config is None
            model = prepare_policy(model, peft_config=peft_config, args=args)
        else:
            came_with_adapter = False
            model_init = prepared_init(
                model_init, lambda made: prepare_policy(made, peft_config=peft_config, args=args)
            )
        self.is_encoder_decoder = is_encoder_decoder(model, args.is_encoder_decoder)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator
            or default_collator(
                processing_class, padding_value=args.padding_value, is_encoder_decoder=self.is_encoder_decoder
            ),
            train_dataset=self._prepared(train_dataset, "train_dataset"),
            eval_dataset=self._prepared(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.reference = choose_reference(
            ref_model,
            policy=self._policy,
            args=args,
            prepare=lambda made: self.accelerator.prepare_model(made, evaluation_mode=True),
            came_with_adapter=came_with_adapter,
            policy_adapter=model_adapter_name,
            reference_adapter=ref_adapter_name,
            has_column=self._has_all_reference_logps(),
        )
        if args.precompute_ref_log_probs:
            self._precompute_reference_logps()

    # ---- what a method says ----

    @abstractmethod
    def preference_loss(
        self, batch: Batch, policy: CompletionLogps, reference_logps: Tensor, *, is_training: bool
    ) -> PreferenceLoss:
        """Loss, rewards and metrics of a batch.

        Args:
            batch: columns of the rows, as tensors of shape (n,), and what `PreferenceCollator` makes of the ids.
            policy: log-probabilities under the policy, differentiable; per row, shape (n,).
            reference_logps: the same under the reference. Shape (n,).
            is_training: whether state that follows training may move.
        """

    def begin(self) -> None:
        """Make what the method keeps between steps; called once, when `args` stand and nothing else does."""

    def end_step(self) -> None:
        """Called in each optimizer step behind its last micro-batch, before the weights move."""

    def method_state(self) -> dict[str, Any]:
        """What the method keeps between steps, as finite JSON values."""
        return {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty one starts anew."""

    def check_rows(self, rows: Dataset, name: str) -> Dataset:  # noqa: ARG002 - what methods override
        """`rows` as the method wants them; raises ValueError where it can't learn from them."""
        return rows

    # ---- data ----

    def _prepared(self, dataset: Any, name: str) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, Mapping):
            return {key: self._prepared(rows, f"{name} {key}") for key, rows in dataset.items()}
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"{name}: expected a datasets.Dataset, found {type(dataset).__name__}; Dataset.from_list makes one"
            )
        args = self.args
        reader = RowReader(
            self.tokenizer_of_rows,
            Lengths(args.max_length, args.max_prompt_length, args.max_completion_length, args.truncation_mode),
            self.is_encoder_decoder,
            args.dataset_num_proc,
        )
        extra = self.extra_columns if args.remove_unused_columns else dataset.column_names
        rows, self.left_out[name] = reader.labelled(dataset, name=name, extra_columns=extra)
        return self.check_rows(rows, name)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:  # noqa: ARG002
        # The base class would keep what the model's forward takes; rows were stripped when they were prepared.
        return dataset

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:  # noqa: ARG002
        return data_collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(rows)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        classes = rows["label"][:] if "label" in rows.column_names else None
        return InterleavedSampler(classes, num_rows=len(rows), seed=seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Batches of `eval_dataset`: a dataset, raw or encoded, or the name of one given at construction."""
        return super().get_eval_dataloader(self._prepared_late(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Batches of `test_dataset`, raw or encoded, to predict on."""
        return super().get_test_dataloader(self._prepared_late(test_dataset))

    def _prepared_late(self, dataset: Any) -> Any:
        is_ready = not isinstance(dataset, Dataset) or (is_encoded(dataset) and "row_id" in dataset.column_names)
        return dataset if is_ready else self._prepared(dataset, "eval_dataset")

    # ---- reference ----

    def _policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _all_rows(self) -> list[Dataset]:
        evaluation = self.eval_dataset
        several = list(evaluation.values()) if isinstance(evaluation, Mapping) else [evaluation]
        return [rows for rows in (self.train_dataset, *several) if rows is not None]

    def _has_all_reference_logps(self) -> bool:
        found = self._all_rows()
        return bool(found) and all("reference_logps" in rows.column_names for rows in found)

    def _precompute_reference_logps(self) -> None:
        """Fill the column `reference_logps` of all datasets now, before the policy moves."""
        if self.train_dataset is not None:
            self.train_dataset = self._with_reference_logps(self.train_dataset)
        if isinstance(self.eval_dataset, Mapping):
            self.eval_dataset = {name: self._with_reference_logps(rows) for name, rows in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_reference_logps(self.eval_dataset)
        if isinstance(self.reference, PolicyItself):
            self.reference = None

    def _with_reference_logps(self, rows: Any) -> Any:
        if "reference_logps" in rows.column_names:
            return rows
        batches = super().get_eval_dataloader(rows)
        found = []
        for batch in batches:
            logps = self.reference_logps_of(self._prepare_inputs(batch))
            found.append(self.accelerator.gather_for_metrics(logps).cpu())
        return rows.add_column("reference_logps", torch.cat(found).numpy())

    def reference_logps_of(self, batch: Batch) -> Tensor:
        """Log-probability of each completion under the reference. Shape (n,).

        Raises:
            ValueError: the rows have no such column and no reference was kept.
        """
        if "reference_logps" in batch:
            column: Tensor = batch["reference_logps"]
            return column
        if self.reference is None:
            raise ValueError(
                "expected a column reference_logps, for no reference model is kept, found none; give the dataset at "
                "construction, or a ref_model"
            )
        with torch.no_grad(), self.accelerator.autocast(), self.reference.active() as model:
            return self.logps_of(model, batch).logps

    # ---- steps ----

    def logps_of(self, model: nn.Module, batch: Batch) -> CompletionLogps:
        """Log-probabilities of the batch's completions under `model`."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        if self.is_encoder_decoder:
            return seq2seq_logps(model, **inputs, decoder_input_ids=batch["decoder_input_ids"])
        return completion_logps(model, **inputs)

    def _scored(self, model: nn.Module, batch: Batch) -> Scored:
        reference_logps = self.reference_logps_of(batch)
        policy = self.logps_of(model, batch)
        refuse_non_finite(batch, policy.logps, reference_logps, step=self.state.global_step)
        return Scored(batch, policy, reference_logps)

    def _balance_loss(self, policy: CompletionLogps) -> Tensor | None:
        """What a mixture of experts adds so that its experts are used alike. Shape ()."""
        if policy.aux_loss is None:
            return None
        coefficient: float = self._policy().config.router_aux_loss_coef
        return coefficient * policy.aux_loss.to(policy.logps.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the base class hands it over
    ) -> Any:
        """Mean loss of a training batch, with its `PreferenceLoss` if `return_outputs`."""
        scored = self._scored(model, inputs)
        result = self.preference_loss(*scored, is_training=True)
        self._train_sums.add(result.metrics)
        balance = self._balance_loss(scored.policy)
        loss = result.losses.mean() if balance is None else result.losses.mean() + balance
        return (loss, result) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch forward and backward; gives its share of the step's loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        steps = torch.tensor(1.0 / self.current_gradient_accumulation_steps, dtype=torch.float64)
        self._train_sums.add({"loss": Share(loss, steps)})
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Asked for once in each optimizer step, behind its last micro-batch.
        self.end_step()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call] # transformers
        # The scaler of fp16 meets infinities as a matter of course and leaves out those steps.
        if norm is not None and not self.args.fp16:
            self._gradient_watch.look(float(norm), step=self.state.global_step)
        return norm

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the base class hands it over
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch and, if wanted, the reward and label of each row."""
        with torch.no_grad(), self.compute_loss_context_manager():
            scored = self._scored(model, self._prepare_inputs(inputs))
            result = self.preference_loss(*scored, is_training=False)
            number = num_own_rows(len(scored.reference_logps), self.accelerator)
            own = result
            if number < len(scored.reference_logps):
                own = self.preference_loss(*scored.first(number), is_training=False)
        loss = loss_share(own, self._balance_loss(scored.policy))
        self._eval_sums.add({**own.metrics, "loss": loss})
        mean = result.losses.mean()
        if prediction_loss_only:
            return mean, None, None
        labels = scored.batch["label"].long() if "label" in scored.batch else torch.zeros_like(result.rewards).long()
        return mean, result.rewards, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate on the batches of `dataloader`, with the method's metrics under `metric_key_prefix`."""
        self._eval_sums = MetricSums()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        means = self._eval_sums.drain(self.accelerator)
        metrics: dict[str, float] = output.metrics or {}
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        if self.args.generate_during_eval:
            write_samples(self, dataloader.dataset, metric_key_prefix)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; lines of training get the means since the last one."""
        if "loss" in logs:
            logs = {**logs, **self._train_sums.drain(self.accelerator)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of a pass over `inputs`, by the usual estimate."""
        if self._num_parameters is None:
            self._num_parameters = sum(weight.numel() for weight in self._policy().parameters())
        return 6 * int(inputs["input_ids"].numel()) * self._num_parameters

    # ---- checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the last whole one in `args.output_dir`; what a
                kill left of one is passed over.
            trial: of a hyperparameter search.
            ignore_keys_for_eval: handed on to the evaluation.
        """
        if resume_from_checkpoint is True:
            found = last_whole_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise ValueError(f"{self.args.output_dir}: expected a whole checkpoint to go on from, found none")
            resume_from_checkpoint = str(found)
        self._train_sums, self._gradient_watch = MetricSums(), GradientWatch()
        if self.model_init is not None:
            self.restore_method_state({})
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        self.restore_method_state(state["method"])
        self._train_sums.restore(state["sums"])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_state(folder, method=self.method_state(), sums=self._train_sums.state())
            write_text(folder / "README.md", self.card())

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the model's page into the output folder."""
        if self.is_world_process_zero():
            write_text(Path(self.args.output_dir) / "README.md", self.card())

    def card(self, base_model: str | None = None) -> str:
        """Text of the model's page.

        Args:
            base_model: repository that the policy came from; None says nothing.
        """
        return card_of(self, base_model)
