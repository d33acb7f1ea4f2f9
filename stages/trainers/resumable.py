"""What trainers here add to the one of transformers: exact means in the log, checkpoints that go on bit for bit.

A method adds its loss, and what state it keeps between steps.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from stages.contracts.files import write_text
from stages.trainers.checkpoints import last_whole_checkpoint, read_state, write_state
from stages.trainers.metrics import MetricSums, Share
from stages.trainers.safeguards import GradientWatch
from stages.trainers.seeding import InterleavedSampler


class ResumableTrainer(Trainer):
    """Logs means over all rows since the last line, stops before a step that spoils the weights, and resumes exactly.

    A subclass adds what its batches contribute to `train_sums` and `eval_sums`. The arguments are those of
    `transformers.Trainer`.
    """

    method: ClassVar[str]
    """Short name of the method."""
    title: ClassVar[str]
    """Full name of the method."""
    paper: ClassVar[str]
    """URL of its paper."""
    # A batch's loss is a mean over its rows, so that the base class has to divide it by the accumulated batches.
    loss_is_scaled_for_ga = False

    args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.train_sums, self.eval_sums = MetricSums(), MetricSums()
        self._gradient_watch = GradientWatch()
        self._num_parameters: int | None = None
        super().__init__(*args, **kwargs)

    # ---- what a method says ----

    @abstractmethod
    def card(self, base_model: str | None = None) -> str:
        """Text of the model's page.

        Args:
            base_model: repository that the model came from; None says nothing.
        """

    def end_step(self) -> None:
        """Called in each optimizer step behind its last micro-batch, before the weights move."""

    def method_state(self) -> dict[str, Any]:
        """What the method keeps between steps, as finite JSON values."""
        return {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take up what `method_state` gave; an empty one starts anew."""

    # ---- data ----

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
        return InterleavedSampler(self.row_classes(rows), num_rows=len(rows), seed=seed)

    def row_classes(self, rows: Any) -> list[bool] | None:  # noqa: ARG002 - what methods override
        """Class of each row, to be spread evenly over an epoch; None for rows of one kind."""
        return None

    # ---- steps ----

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch forward and backward; gives its share of the step's loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        steps = torch.tensor(1.0 / self.current_gradient_accumulation_steps, dtype=torch.float64)
        self.train_sums.add({"loss": Share(loss, steps)})
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
        self.eval_sums = MetricSums()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        means = self.eval_sums.drain(self.accelerator)
        metrics: dict[str, float] = output.metrics or {}
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; lines of training get the means since the last one."""
        if "loss" in logs:
            logs = {**logs, **self.train_sums.drain(self.accelerator)}
        super().log(logs, start_time)

    def num_tokens(self, inputs: dict[str, Any]) -> int:
        """Tokens of a batch, padding included."""
        return sum(value.numel() for name, value in inputs.items() if "input_ids" in name and isinstance(value, Tensor))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of a pass over `inputs`, by the usual estimate."""
        if self._num_parameters is None:
            model = self.accelerator.unwrap_model(self.model)
            self._num_parameters = sum(weight.numel() for weight in model.parameters())
        return 6 * self.num_tokens(inputs) * self._num_parameters

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
        self.train_sums, self._gradient_watch = MetricSums(), GradientWatch()
        if self.model_init is not None:
            self.restore_method_state({})
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        self.restore_method_state(state["method"])
        self.train_sums.restore(state["sums"])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_state(folder, method=self.method_state(), sums=self.train_sums.state())
            write_text(folder / "README.md", self.card())

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the model's page into the output folder."""
        if self.is_world_process_zero():
            write_text(Path(self.args.output_dir) / "README.md", self.card())
