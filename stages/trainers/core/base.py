"""What all trainers share that follow the loop of transformers: order of rows, means, safeguards, checkpoints."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, has_length

from stages.contracts import stopping
from stages.contracts.files import write_text
from stages.models.prompt_room import learned_positions
from stages.rows.given import id_extents, rows_of
from stages.trainers.core.arguments import DocumentedArguments
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS, damaged, seal, write_state, written_to
from stages.trainers.core.job import Job
from stages.trainers.core.metrics import MetricSums, Share
from stages.trainers.core.model_card import card_of
from stages.trainers.core.processes import is_asked_to_stop, shard_on_cpu
from stages.trainers.core.safeguards import GradientWatch
from stages.trainers.core.scored import mark_own_rows
from stages.trainers.core.seeding import InterleavedSampler

logger = logging.getLogger(__name__)


class FeedbackTrainer(Trainer):
    """The loop of transformers, with means over all rows in its log and checkpoints that hold all of its state.

    A method computes a loss per batch, a mean over its rows, and adds what else it wants in the log to `_train_sums`
    and `_eval_sums`.

    Args:
        arguments: those of `transformers.Trainer`.
    """

    method: ClassVar[str]
    """Short name of the method."""
    title: ClassVar[str]
    """Full name of the method."""
    paper: ClassVar[str]
    """URL of its paper."""
    pipeline_tag: ClassVar[str | None] = None
    """What the model is for, in the words of model hubs; None: it generates text."""
    # A batch's loss is a mean over its rows, so that the base class has to divide it by the accumulated batches.
    loss_is_scaled_for_ga = False

    args: Any

    live_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of the method's own that are read in each step, so that they may be set later."""

    def __init__(self, **arguments: Any) -> None:
        self._train_sums, self._eval_sums = MetricSums(), MetricSums()
        self._gradient_watch = GradientWatch()
        self._last_step = 0
        self._num_parameters: int | None = None
        shard_on_cpu(arguments["args"])
        num_devices = _use_one_device(arguments["args"])
        super().__init__(**arguments)
        self._settings_read = self._settings()
        if num_devices > 1 and not self.is_model_parallel:
            logger.warning(
                "one of %d devices is used, for this is one process; torchrun, or PLUMBLINE_LAUNCH for a stage (see "
                "docs/scale.md), starts one for each",
                num_devices,
            )

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, by its name in transformers 4."""
        return self.processing_class

    # ---- what a method says ----

    @classmethod
    def of_stage(cls, job: Job) -> Self:
        """The trainer that does what the stage `training` asks for; methods of that stage have one."""
        raise ValueError(f"{cls.__name__} is not trained by the stage training; {job.params.__class__.__name__} is")

    def lineage_facts(self, params: Any) -> dict[str, Any]:  # noqa: ARG002 - what methods override
        """What the lineage of a model says that the stage `training` trained, as finite JSON values.

        Args:
            params: the method's section of params.yaml.
        """
        return {}

    def start_facts(self) -> dict[str, Any]:
        """What was measured before the first step, as finite JSON values, also if that was before a kill."""
        return {}

    def before_saving(self, params: Any) -> bool:  # noqa: ARG002 - what methods override
        """Called before the stage `training` writes the model; whether others may then start from it."""
        return False

    def end_step(self) -> None:
        """Called in each optimizer step behind its last micro-batch, before the weights move."""

    def end_evaluation(self, rows: Any, name: str) -> None:
        """Called behind each evaluation.

        Args:
            rows: the dataset that was evaluated on.
            name: prefix of its metrics.
        """

    def prepare_rows(self, dataset: Any, name: str) -> Any:  # noqa: ARG002 - what trainers of raw rows override
        """Rows as the collator reads them, of one dataset as users give it.

        Args:
            dataset: what a trainer was given.
            name: what to call it in messages.
        """
        return dataset

    def method_state(self) -> dict[str, Any]:
        """What the method keeps between steps, as finite JSON values."""
        return {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty one starts anew."""

    def _kept_sums(self) -> dict[str, MetricSums]:
        """Sums that go on behind a checkpoint, by their names in it."""
        return {"sums": self._train_sums}

    def _policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    # ---- rows ----

    def _prepared(self, dataset: Any, name: str) -> Any:
        """A dataset, or several by name, as the collator reads them."""
        if isinstance(dataset, Mapping):
            return {key: self._prepared(rows, f"{name} {key}") for key, rows in dataset.items()}
        return None if dataset is None else self.prepare_rows(dataset, name)

    def _settings(self) -> dict[str, Any]:
        """Settings of the method's own that were read when the trainer was made."""
        shared = {field.name for field in dataclasses.fields(DocumentedArguments)} | self.live_settings
        names = [field.name for field in dataclasses.fields(self.args) if field.name not in shared]
        return {name: getattr(self.args, name) for name in names} if isinstance(self.args, DocumentedArguments) else {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches to train on.

        Raises:
            ValueError: a setting that was read when the trainer was made has been set since, or rows hold a token that
                the model has no embedding for.
        """
        self._check_ids()
        for name, value in self._settings().items():
            if value != (before := self._settings_read[name]):
                raise ValueError(
                    f"expected {name} as it was when the trainer was made, {before!r}, found {value!r}; "
                    "set it before, or make the trainer anew"
                )
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Batches of `eval_dataset`: a dataset, raw or encoded, or the name of one given at construction."""
        return super().get_eval_dataloader(self._prepared_late(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Batches of `test_dataset`, raw or encoded, to predict on."""
        return super().get_test_dataloader(self._prepared_late(test_dataset))

    def _prepared_late(self, dataset: Any) -> Any:
        if dataset is None or isinstance(dataset, str) or any(dataset is rows for rows in self._all_rows()):
            return dataset
        given = rows_of(dataset, "eval_dataset")
        return self._prepared(given, "eval_dataset") if isinstance(given, Dataset) else given

    def _check_ids(self) -> None:
        """Raise ValueError if rows hold a token or a position that the model has no embedding for.

        A pass would fail at it, on a GPU without saying why.
        """
        policy: Any = self._policy()
        embeddings = policy.get_input_embeddings() if hasattr(policy, "get_input_embeddings") else None
        num_ids, positions = getattr(embeddings, "num_embeddings", math.inf), learned_positions(policy)
        for rows in self._all_rows():
            names = rows.column_names if isinstance(rows, Dataset) else []
            extents = [id_extents(rows, name) for name in names if name.endswith("input_ids")]
            greatest, longest = map(max, zip(*extents, strict=True)) if extents else (0, 0)
            if greatest >= num_ids:
                raise ValueError(
                    f"expected token ids below {num_ids}, the embeddings of the model, found {greatest}; take the "
                    "model's own tokenizer, or model.resize_token_embeddings(len(tokenizer)) before"
                )
            if longest > positions and "position_ids" not in names:
                raise ValueError(
                    f"expected rows of up to {positions} tokens, the positions of the model, found one of "
                    f"{longest}; set max_length"
                )

    def _all_rows(self) -> list[Any]:
        """The datasets given at construction, as they were prepared."""
        evaluation: Any = self.eval_dataset
        several = list(evaluation.values()) if isinstance(evaluation, Mapping) else [evaluation]
        return [rows for rows in (self.train_dataset, *several) if rows is not None]

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
        classes = rows["label"][:] if "label" in getattr(rows, "column_names", ()) else None
        return InterleavedSampler(classes, num_rows=len(rows), seed=seed)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of an optimizer step, the last of which says if it holds rows that don't count."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows: Any = self.train_dataset
        if batches and not self.args.dataloader_drop_last and has_length(rows):
            mark_own_rows(batches[-1], self._train_batch_size, self.accelerator, num_rows=len(rows))
        return batches, number

    # ---- steps ----

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
        self.end_evaluation(dataloader.dataset, metric_key_prefix)
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
        num_tokens = sum(int(tensor.numel()) for name, tensor in inputs.items() if name.endswith("input_ids"))
        return 6 * num_tokens * self._num_parameters

    def _can_leave(self) -> bool:
        """Whether a training that is asked to end may do so behind the step at hand."""
        return True

    def _maybe_log_save_evaluate(self, *arguments: Any, **named: Any) -> None:
        # Called at the end of each step, and once more at that of an epoch.
        is_new, self._last_step = self.state.global_step != self._last_step, self.state.global_step
        is_leaving = is_new and self._can_leave() and is_asked_to_stop(self.accelerator)
        self.control.should_save = self.control.should_save or is_leaving
        super()._maybe_log_save_evaluate(*arguments, **named)
        if is_leaving:
            stopping.leave(f"step {self.state.global_step}")

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

        Raises:
            ValueError: there is no whole checkpoint, or the one that is named was damaged.
        """
        if resume_from_checkpoint is True:
            found = LOOP_CHECKPOINTS.last_whole(Path(self.args.output_dir))
            if found is None:
                raise ValueError(f"{self.args.output_dir}: expected a whole checkpoint to go on from, found none")
            resume_from_checkpoint = str(found)
        elif resume_from_checkpoint and (wrong := damaged(Path(resume_from_checkpoint))):
            raise ValueError(
                f"{resume_from_checkpoint}: expected the files that were written, found others or none for "
                f"{', '.join(wrong)}; go on from another checkpoint"
            )
        self._train_sums, self._gradient_watch = MetricSums(), GradientWatch()
        if self.model_init is not None:
            self.restore_method_state({})
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        # Resumed behind its last step, the loop of transformers 5.23 would begin the epoch that this step stands in
        # where it left off, and stop only behind one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **named)  # type: ignore[no-untyped-call] # transformers

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._gradient_watch = GradientWatch(has_learned=True)
        state = LOOP_CHECKPOINTS.read(Path(checkpoint))
        self.restore_method_state(state["method"])
        for name, sums in self._kept_sums().items():
            sums.restore(state.get(name, {}), self.accelerator)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The base class removes old ones file by file, which a kill leaves half removed.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            with written_to(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save and folder.is_dir():
            with written_to(folder):
                seal(folder)
            best = self.state.best_model_checkpoint
            LOOP_CHECKPOINTS.remove_oldest(folder, limit=limit, best=None if best is None else Path(best))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        self._write_state(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_fsdp_enabled:
            # Sharded weights were saved here, and not by `_save`.
            self._write_state(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The file that says that a checkpoint is whole is written next, by the first process alone.
        self.accelerator.wait_for_everyone()

    def _write_state(self, output_dir: str | None) -> None:
        sums = {name: kept.state(self.accelerator) for name, kept in self._kept_sums().items()}
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_state(folder, method=self.method_state(), **sums)
            write_text(folder / "README.md", self.card())

    def create_model_card(self, **facts: Any) -> None:  # type: ignore[override] # by name, as it is called
        """Write the model's page into the output folder.

        Args:
            facts: what `card` takes; `push_to_hub` hands its further arguments on to here.
        """
        if self.is_world_process_zero():
            write_text(Path(self.args.output_dir) / "README.md", self.card(**facts))

    def card(self, base_model: str | None = None, **facts: Any) -> str:
        """Text of the model's page.

        Args:
            base_model: repository that the policy came from; None takes the name that the model was loaded by.
            facts: what else `stages.trainers.core.model_card.card_of` takes: model_name, tags, language, license and
                dataset_name.
        """
        return card_of(self, base_model, **facts)


def _use_one_device(args: Any) -> int:
    """Keep one process to one device, and give how many it has.

    The base class would spread each batch over all of them in threads (`nn.DataParallel`), where what stands at the
    output head to score completions would see the passes of all copies of the model at once.
    """
    _ = args.device  # the devices are counted when one is first asked for
    num_devices: int = args.n_gpu
    args._n_gpu = min(num_devices, 1)
    return num_devices
