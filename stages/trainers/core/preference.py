"""The core that preference methods share: forward, reference, batches, metrics, checkpoints.

A method adds a config, its `preference_loss`, and what state it keeps between steps.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stages.contracts.files import write_json
from stages.models.frozen import PolicyItself, SeparateModel, check_adapters
from stages.models.logprobs import CompletionLogps, completion_logps
from stages.models.modes import evaluating
from stages.models.seq2seq import seq2seq_logps
from stages.rows.collation import PreferenceCollator, default_collator, stacked
from stages.rows.given import rows_of
from stages.rows.raw import PAIR, LeftOut, Lengths, RowReader, reference_column
from stages.trainers.core.applied_terms import compared
from stages.trainers.core.arguments import settle
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.config import PreferenceConfig
from stages.trainers.core.given import name_of, tokenizer_given
from stages.trainers.core.job import Job
from stages.trainers.core.loss_terms import changed_terms, live_terms, why_live
from stages.trainers.core.metrics import Share
from stages.trainers.core.moving_reference import MovingReference
from stages.trainers.core.policy import check_made, is_encoder_decoder, load_model, prepare_policy, prepared_init
from stages.trainers.core.processes import shard_on_cpu
from stages.trainers.core.reference import (
    add_reference_logps,
    check_reference_arguments,
    choose_reference,
    has_reference_logps,
    read_reference_logps,
    reference_again,
    refuse_columns,
    refuse_half,
    say_unread,
    without_columns,
)
from stages.trainers.core.safeguards import refuse_non_finite
from stages.trainers.core.samples import write_samples
from stages.trainers.core.scored import (
    Batch,
    PreferenceLoss,
    Scored,
    loss_share,
    num_own_rows,
    own_rows,
)
from stages.trainers.core.seeding import set_seed

Datasets: TypeAlias = Dataset | Mapping[str, Dataset] | None
_START_FILE = "start.json"


class PreferenceTrainer(FeedbackTrainer):
    """Trains a policy on people's feedback, as a rule against a frozen reference.

    Args:
        model: the policy: a model, or the folder or repository of one. None if `model_init` makes it.
        ref_model: the reference, likewise; the policy's name loads it a second time. None takes the policy as it is at
            the start: without its adapter if it gets one, with frozen copies of the adapter if it comes with one, else
            a copy of the whole. No model is kept where the datasets have `reference_logps`, or
            `args.precompute_ref_log_probs` computes them.
        args: configuration of the method.
        train_dataset: raw rows, or rows with the columns that the stages make (`input_ids`, `prompt_length`, `label`,
            and what else the method reads). A method of single rows learns from both rows of a pair; one of pairs
            reads `chosen_input_ids`, `chosen_prompt_length` and the same for `rejected_`.
        eval_dataset: the same for evaluation, or several by name.
        processing_class: the tokenizer. None takes the one beside a model that is given by name.
        data_collator: makes a batch of encoded rows; None pads them on the right. See `PreferenceCollator` for the
            tensors that a batch holds.
        model_init: makes the model anew at each call of `train`.
        callbacks: called besides the usual ones.
        optimizers: optimizer and schedule to use in place of those that `args` describe.
        preprocess_logits_for_metrics: called with rewards and labels before they are kept for `compute_metrics`.
        peft_config: adapter to lay on the policy, or a dict of its configuration; None trains the model itself.
        compute_metrics: called with the reward (predictions) and the label (label_ids) of each row.
        model_adapter_name: adapter that is trained, where the policy has several.
        ref_adapter_name: adapter that is the reference.

    Raises:
        ValueError: arguments contradict each other, or a dataset can't be used.
    """

    config_class: ClassVar[type[PreferenceConfig]]
    """Configuration of the method."""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of numbers that the method reads besides those that all do."""
    sequences: ClassVar[tuple[str, ...]] = ("",)
    """Prefixes of the sequences of a row that are learned from: one, or the two of a pair."""
    extra_sequences: tuple[str, ...] = ()
    """Prefixes of those that the method only looks at, without gradients."""
    live_settings = frozenset({"beta", "rpo_alpha", "log_epsilon_p", "log_epsilon_r"})
    needs_reference = True
    """Whether the method compares the policy with a reference."""
    max_start_reward: float | None = None
    """Mean size of rewards before the first step above which a run ends; None where the policy may start elsewhere than
    at its reference."""

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
        settle(args)
        # The same name twice is loaded twice.
        is_policy = ref_model is not None and ref_model is model and name_of(model) is None
        if (model is None) == (model_init is None) or is_policy:
            raise ValueError(
                "expected a policy as one of model and model_init, and as ref_model another model or None; "
                "None takes the policy as it is at the start"
            )
        processing_class = tokenizer_given(processing_class, model)
        train_dataset = rows_of(train_dataset, "train_dataset")
        eval_dataset = rows_of(eval_dataset, "eval_dataset")
        if args.generate_during_eval and processing_class is None:
            raise ValueError(
                "expected processing_class, a tokenizer, to sample with for generate_during_eval, found none"
            )
        check_reference_arguments(
            ref_model, args.ref_model_init_kwargs, ref_adapter_name, policy_adapter=model_adapter_name
        )
        set_seed(args.seed)
        self.args = args
        self.begin()
        self.needs_reference = self.needs_reference and not args.reference_free
        say_unread(ref_model, ref_adapter_name, args=args, needs_reference=self.needs_reference)
        self.is_encoder_decoder = False
        self.tokenizer_of_rows = processing_class
        self.left_out: dict[str, LeftOut] = {}
        self._reader().check(train_dataset, name="train_dataset", as_pairs=self.sequences == PAIR)
        self._reader().check(eval_dataset, name="eval_dataset", as_pairs=self.sequences == PAIR)
        collator = data_collator or default_collator(
            processing_class, padding_value=args.padding_value, is_encoder_decoder=False
        )

        def prepare(made: Any) -> Any:
            made = prepare_policy(made, peft_config=peft_config, args=args)
            check_adapters(made, *filter(None, (ref_adapter_name, model_adapter_name)))
            if model is None:
                check_made(made, is_encoder_decoder=self.is_encoder_decoder)
            return made

        if model is not None:
            model = prepare(load_model(model, args.model_init_kwargs, name="model"))
        else:
            model_init = prepared_init(model_init, prepare)
        self.is_encoder_decoder = is_encoder_decoder(model, args.is_encoder_decoder)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator
            or PreferenceCollator(collator.pad_id, is_encoder_decoder=self.is_encoder_decoder),
            train_dataset=self._prepared(train_dataset, "train_dataset"),
            eval_dataset=self._prepared(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._reference_again = reference_again(ref_model, args)
        self.reference = choose_reference(
            ref_model,
            policy=self._policy,
            args=args,
            prepare=self._prepare_reference,
            has_new_adapter=peft_config is not None,
            policy_adapter=model_adapter_name,
            reference_adapter=ref_adapter_name,
            has_column=not self.needs_reference or self._has_all_reference_logps(),
        )
        self._moving_reference = self._follow_policy() if args.sync_ref_model else None
        if args.precompute_ref_log_probs and self.needs_reference:
            self._precompute_reference_logps()

    @property
    def beta(self) -> float:
        """`args.beta`, by the name that TRL's trainers have it under; it may be set, as by a callback."""
        beta: float = self.args.beta
        return beta

    @beta.setter
    def beta(self, value: float) -> None:
        self.args.beta = value

    # ---- as a stage ----

    @classmethod
    def of_stage(cls, job: Job) -> Self:
        """The trainer of the rows of a stage; they are cut already."""
        args = cls.config_class(**job.arguments(), max_length=None, max_prompt_length=None)
        shard_on_cpu(args)
        if job.rows.origins and (why := why_live(args)):
            raise ValueError(f"expected rows with one reference with {why}, found also {', '.join(job.rows.origins)}")
        trainer = cls(
            job.policy(),
            args=args,
            train_dataset=without_columns(job.train_rows(), args),
            **job.beside_the_model(task_type="CAUSAL_LM"),
        )
        # Rewards against the model that gave an answer aren't 0 at the start.
        trainer.max_start_reward = None if job.rows.origins else job.params.max_start_reward
        return trainer

    def lineage_facts(self, params: Any) -> dict[str, Any]:
        """What `evaluation` reads rewards by, and what was added to the method's loss."""
        terms = {name: getattr(self.args, name) for name in changed_terms(self.args)}
        return {"beta": params.beta, "reward_shift": self.reward_shift(), **({"terms": terms} if terms else {})}

    # ---- what a method says ----

    @abstractmethod
    def preference_loss(
        self, batch: Batch, policy: CompletionLogps, reference_logps: Tensor, *, is_training: bool
    ) -> PreferenceLoss:
        """Loss, rewards and metrics of a batch.

        Args:
            batch: columns of the n rows, as tensors of shape (n,), and what `PreferenceCollator` makes of the ids.
            policy: log-probabilities under the policy, differentiable; per sequence, shape (sequences * n,): of pairs,
                first all chosen completions and then all rejected ones.
            reference_logps: the same under the reference; zeros for a method that needs none.
            is_training: whether state that follows training may move.
        """

    def begin(self) -> None:
        """Make what the method keeps between steps; called once, when `args` stand and nothing else does."""

    def reward_shift(self) -> float:
        """What rewards are compared with: a completion whose reward is above it counts as desired."""
        return 0.0

    def look_ahead(self, model: nn.Module, batches: Sequence[Batch], *, is_training: bool) -> None:
        """Called in all processes with the micro-batches of a step, or one of an evaluation, before any is scored.

        Args:
            model: the policy.
            batches: to which a method may add columns; one that has them already is left as it is.
            is_training: whether the batches are those of a step.
        """

    def check_rows(self, rows: Dataset, name: str) -> Dataset:  # noqa: ARG002 - what methods override
        """`rows` as the method wants them; raises ValueError where it can't learn from them."""
        return rows

    # ---- data ----

    def _reader(self) -> RowReader:
        args = self.args
        return RowReader(
            self.tokenizer_of_rows,
            Lengths(args.max_length, args.max_prompt_length, args.max_completion_length, args.truncation_mode),
            self.is_encoder_decoder,
            args.dataset_num_proc,
        )

    def prepare_rows(self, dataset: Any, name: str) -> Dataset:
        """Encoded rows of a dataset, raw or with the columns of the stages, as the method wants them."""
        reader = self._reader()
        extra = self.extra_columns if self.args.remove_unused_columns else dataset.column_names
        read = reader.paired if self.sequences == PAIR else reader.labelled
        rows, self.left_out[name] = read(dataset, name=name, extra_columns=extra)
        refuse_columns(rows, self._all_sequences(), self.args, name=name)
        refuse_half(rows, self.sequences, name=name)
        return self.check_rows(rows, name)

    def end_evaluation(self, rows: Any, name: str) -> None:
        """Sample answers of policy and reference, if asked to."""
        if self.args.generate_during_eval:
            write_samples(self, rows, name)

    # ---- reference ----

    def _prepare_reference(self, model: Any) -> Any:
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _prepared_late(self, dataset: Any) -> Any:
        """As the base class does; where log-probabilities come before training, those under the reference too."""
        rows = super()._prepared_late(dataset)
        is_scored = has_reference_logps(rows, self._all_sequences()) if isinstance(rows, Dataset) else True
        if rows is dataset or is_scored or self.reference is not None or not self.needs_reference:
            return rows
        found = self._reference_again()
        if found is None:
            return rows
        self.reference = SeparateModel(self._prepare_reference(found))
        try:
            return self._with_reference_logps(rows)
        finally:
            self._let_reference_go()

    def _follow_policy(self) -> MovingReference:
        if self.model_init is not None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "expected sync_ref_model=False, found True: it mixes whole models, and not those that model_init makes "
                "anew or that FSDP and DeepSpeed spread over processes; give model, and train in plain processes"
            )
        args = self.args
        moving = MovingReference(
            self.reference, self._policy, share=args.ref_model_mixup_alpha, steps=args.ref_model_sync_steps
        )
        self.add_callback(moving)
        return moving

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._moving_reference is not None and self.args.should_save:
            self._moving_reference.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._moving_reference is not None and checkpoint is not None:
            self._moving_reference.restore(Path(checkpoint))

    def _let_reference_go(self) -> None:
        self.reference = None
        self.accelerator.free_memory()  # which has a list of all models that it was shown

    def _has_all_reference_logps(self) -> bool:
        found = self._all_rows()
        return bool(found) and all(has_reference_logps(rows, self._all_sequences()) for rows in found)

    def _all_sequences(self) -> tuple[str, ...]:
        return (*self.sequences, *self.extra_sequences)

    def _precompute_reference_logps(self) -> None:
        """Fill the columns of the reference in all datasets now, before the policy moves."""
        self._check_ids()
        if self.train_dataset is not None:
            self.train_dataset = self._with_reference_logps(self.train_dataset)
        if isinstance(self.eval_dataset, Mapping):
            self.eval_dataset = {name: self._with_reference_logps(rows) for name, rows in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_reference_logps(self.eval_dataset)
        is_read = self.args.generate_during_eval and isinstance(self.reference, SeparateModel)
        if isinstance(self.reference, PolicyItself | SeparateModel) and not is_read:
            self._let_reference_go()

    def _with_reference_logps(self, rows: Any) -> Any:
        missing = [name for name in self._all_sequences() if reference_column(name) not in rows.column_names]
        if not missing:
            return rows
        return add_reference_logps(
            rows,
            missing,
            args=self.args,
            collator=self.data_collator,
            score=lambda batch: self.reference_logps_of(self._prepare_inputs(batch), missing),
            accelerator=self.accelerator,
        )

    def reference_logps_of(self, batch: Batch, sequences: Sequence[str] | None = None) -> Tensor:
        """Log-probability of each completion under the reference. Shape (sequences * n,).

        Args:
            batch: what the collator made.
            sequences: prefixes of the sequences to score; None takes those that are learned from.

        Raises:
            ValueError: the rows have no such column and no reference was kept.
        """
        sequences = self.sequences if sequences is None else sequences
        if has_reference_logps(batch, sequences):
            return read_reference_logps(batch, sequences)
        return self._reference_pass(batch, sequences).logps

    def _reference_pass(self, batch: Batch, sequences: Sequence[str]) -> CompletionLogps:
        if self.reference is None:
            raise ValueError(
                f"expected a column {reference_column(sequences[0])}, for no reference model is kept, found none; give "
                "the dataset at construction, or keep the model that you gave as ref_model"
            )
        with torch.no_grad(), self.accelerator.autocast(), self.reference.active() as model:
            return self.logps_of(model, batch, sequences)

    # ---- steps ----

    def logps_of(
        self, model: nn.Module, batch: Batch, sequences: Sequence[str] | None = None, *, for_weights: bool = False
    ) -> CompletionLogps:
        """Log-probabilities of the batch's completions under `model`, in one pass.

        Args:
            model: the policy or the reference.
            batch: what the collator made.
            sequences: prefixes of the sequences to score; None takes those that are learned from.
            for_weights: whether to compute what `use_weighting` reads besides.
        """
        sequences = self.sequences if sequences is None else sequences
        names = ["input_ids", "attention_mask", "completion_mask"]
        if self.is_encoder_decoder:
            names.append("decoder_input_ids")
        inputs: dict[str, Any] = {name: stacked(batch, sequences, name) for name in names}
        logps = seq2seq_logps if self.is_encoder_decoder else completion_logps
        return logps(model, **inputs, with_collision_entropies=for_weights)

    def compared_logps(
        self, model: nn.Module, batch: Batch, sequences: Sequence[str] | None = None
    ) -> tuple[CompletionLogps, Tensor]:
        """Log-probabilities under policy and reference as the loss compares them; zeros for a reference not needed.

        Args:
            model: the policy.
            batch: what the collator made.
            sequences: prefixes of the sequences to score; None takes those that are learned from.

        Raises:
            ValueError: one isn't finite.
        """
        is_learned = sequences is None
        sequences = self.sequences if sequences is None else sequences
        weighted = {"for_weights": True} if is_learned and self.args.use_weighting else {}
        reference = reference_logps = None
        if live_terms(self.args):
            reference = self._reference_pass(batch, sequences)
        elif self.needs_reference:
            reference_logps = self.reference_logps_of(batch, sequences)
        policy = self.logps_of(model, batch, sequences, **weighted)
        if reference_logps is None:
            reference_logps = torch.zeros_like(policy.logps.detach()) if reference is None else reference.logps
        refuse_non_finite(batch, policy.logps, reference_logps, step=self.state.global_step)
        if reference is None:
            return policy, reference_logps
        mask = stacked(batch, sequences, "completion_mask").bool()
        return compared(policy, reference, mask if self.is_encoder_decoder else mask[:, 1:], self.args)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of an optimizer step, which the method has looked at."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        ready = [self._prepare_inputs(batch) for batch in batches]
        self.look_ahead(self.model_wrapped, ready, is_training=True)
        if self.max_start_reward is not None and self.needs_reference and not self.state.global_step:
            self._measure_start(ready, bound=self.max_start_reward)
        return ready, number

    def _measure_start(self, batches: Sequence[Batch], *, bound: float) -> None:
        """Measure the rewards of the first step's rows before anything is learned, which are 0 but for rounding."""
        model = self.model_wrapped
        with self.compute_loss_context_manager(), evaluating(model):
            ratios = [self.logps_of(model, batch).logps - self.reference_logps_of(batch) for batch in batches]
        rewards = self.accelerator.gather(self.args.beta * torch.cat(ratios).float())
        size = rewards.abs().mean().item()
        if size > bound:
            raise ValueError(
                f"before the first step rewards should be 0, for policy and reference are one model; found "
                f"{rewards.mean().item():+.3g} on average, {size:.3g} in size, over {len(rewards)} rows, and "
                f"max_start_reward allows {bound}: the two round otherwise; set reference_logprobs.dtype and .bf16 "
                f"as training.{self.method} has them, or the other way round"
            )
        if self.accelerator.is_main_process:
            found = {"mean_reward": rewards.mean().item(), "mean_size": size, "rows": len(rewards)}
            write_json(Path(self.args.output_dir) / _START_FILE, found)

    def start_facts(self) -> dict[str, Any]:
        """Rewards before the first step."""
        file = Path(self.args.output_dir) / _START_FILE
        return {"start": json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}

    def scored(self, model: nn.Module, batch: Batch) -> Scored:
        """The batch with its log-probabilities under policy and reference.

        Raises:
            ValueError: one isn't finite.
        """
        return Scored(batch, *self.compared_logps(model, batch))

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
        # In training this has been done with all of the step's batches.
        self.look_ahead(model, [inputs], is_training=True)
        scored = self.scored(model, inputs)
        scored, share = own_rows(scored, of=len(scored.reference_logps) // len(self.sequences))
        result = self.preference_loss(*scored, is_training=True)
        self._train_sums.add(result.metrics)
        balance = self._balance_loss(scored.policy)
        loss = result.losses.mean() * share if share else result.losses.sum()
        loss = loss if balance is None else loss + balance
        return (loss, result) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the base class hands it over
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch and, if wanted, the reward and label of each row."""
        with torch.no_grad(), self.compute_loss_context_manager():
            batch = self._prepare_inputs(inputs)
            self.look_ahead(model, [batch], is_training=False)
            scored = self.scored(model, batch)
            result = self.preference_loss(*scored, is_training=False)
            number_of_rows = len(scored.reference_logps) // len(self.sequences)
            number = num_own_rows(number_of_rows, self.accelerator)
            own = result
            if number < number_of_rows:
                own = self.preference_loss(*scored.first(max(number, 1), of=number_of_rows), is_training=False)
        shares = {**own.metrics, "loss": loss_share(own, self._balance_loss(scored.policy))}
        if not number:
            # A process without a row of its own adds nothing, under the names that the others add to.
            shares = {name: Share(total * 0, count * 0) for name, (total, count) in shares.items()}
        self._eval_sums.add(shares)
        mean = result.losses.mean()
        if prediction_loss_only:
            return mean, None, None
        labels = scored.batch["label"].long() if "label" in scored.batch else torch.zeros_like(result.rewards).long()
        return mean, result.rewards, labels
