"""Reward model on preference pairs (Bradley-Terry), Ouyang et al. 2022, https://arxiv.org/abs/2203.02155."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from stages.losses.reward import RewardLoss, reward_loss
from stages.models.adapters import adapter_config
from stages.models.scoring import check_reward_model, reward_model_of, scores_of
from stages.rows.collation import default_collator, stacked
from stages.rows.given import check_finite, rows_of
from stages.rows.raw import PAIR, LeftOut, Lengths, RowReader
from stages.trainers.core.arguments import settle
from stages.trainers.core.base import FeedbackTrainer
from stages.trainers.core.given import either, name_of, tokenizer_given
from stages.trainers.core.job import Job
from stages.trainers.core.metrics import Share, share_of
from stages.trainers.core.policy import prepare_policy, prepared_init
from stages.trainers.core.safeguards import refuse_non_finite
from stages.trainers.core.scored import Batch, num_own_rows, own_share
from stages.trainers.core.seeding import set_seed
from stages.trainers.reward.batches import PairCollator, RewardDataCollatorWithPadding, agree_on_padding, with_our_names
from stages.trainers.reward.config import RewardConfig, check_adapter, checked_length
from stages.trainers.reward.rows import read_pair_rows

__all__ = ["RewardConfig", "RewardDataCollatorWithPadding", "RewardTrainer"]


class RewardTrainer(FeedbackTrainer):
    """Trains a model to score the chosen completion of each pair above the rejected one.

    A pair may have a `margin`, by how much its chosen completion should win at least, and a `weight`, which multiplies
    its loss.

    Args:
        model: a model for sequence classification with one label, or the folder or repository to load one from. None
            if `model_init` makes it.
        args: configuration.
        data_collator: makes a batch of rows; the datasets are then handed to it as they are. See
            `RewardDataCollatorWithPadding` for what a batch must hold. None pads encoded pairs on the right.
        train_dataset: rows of `chosen` and `rejected` texts or messages, with or without a `prompt`; or of
            `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected` and `attention_mask_rejected`; or with the
            columns that the stages make.
        eval_dataset: the same for evaluation, or several by name.
        tokenizer: of the model.
        model_init: makes the model anew at each call of `train`.
        compute_metrics: called with the probabilities (n, 2) that the model gives chosen and rejected (predictions),
            and zeros (label_ids), the place of the right answer. `accuracy` is measured without it.
        callbacks: called besides the usual ones.
        optimizers: optimizer and schedule to use in place of those that `args` describe.
        preprocess_logits_for_metrics: called with those probabilities and zeros before they are kept.
        max_length: the same as `args.max_length`.
        peft_config: adapter to lay on the model, of task type SEQ_CLS; None trains the model itself.
        processing_class: today's name of `tokenizer`.

    Raises:
        ValueError: arguments contradict each other, or a dataset or the model can't be used.
    """

    config_class: ClassVar[type[RewardConfig]] = RewardConfig
    method = "reward"
    pipeline_tag = "text-classification"
    title = "the Bradley-Terry loss on preference pairs"
    paper = "https://arxiv.org/abs/2203.02155"
    live_settings = frozenset({"center_rewards_coefficient"})

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., Any] | None = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        max_length: int | None = None,
        peft_config: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        settle(args)
        tokenizer = either("tokenizer", tokenizer, "processing_class", processing_class)
        self.max_length = checked_length(args, max_length)
        if (model is None) == (model_init is None):
            raise ValueError("expected a reward model as one of model and model_init, found both or none; give one")
        peft_config = adapter_config(peft_config)
        check_adapter(peft_config)
        set_seed(args.seed)
        tokenizer = tokenizer_given(tokenizer, model)
        self.args = args
        self.tokenizer_of_rows = tokenizer
        self.reads_rows = data_collator is None
        self.left_out: dict[str, LeftOut] = {}
        self.num_truncated: dict[str, int] = {}
        collator = data_collator
        if collator is None:
            pad_id = default_collator(tokenizer, padding_value=None, is_encoder_decoder=False).pad_id
            collator = PairCollator(tokenizer, pad_id)
        datasets = [
            self._prepared(rows_of(rows, name), name)
            for rows, name in ((train_dataset, "train_dataset"), (eval_dataset, "eval_dataset"))
        ]

        def prepare(made: Any) -> Any:
            check_reward_model(made, name="model")
            agree_on_padding(made, collator)
            return prepare_policy(made, peft_config=peft_config, args=args)

        super().__init__(
            model=None if model is None else prepare(_loaded(model)),
            args=args,
            data_collator=collator,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            processing_class=tokenizer,
            model_init=None if model_init is None else prepared_init(model_init, prepare),
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    # ---- as a stage ----

    @classmethod
    def of_stage(cls, job: Job) -> Self:
        """The trainer of the pairs of a stage, of a model with a new head on the base."""
        return cls(
            reward_model_of(job.base_model, dtype=job.params.dtype, seed=job.params.seed),
            args=cls.config_class(**job.arguments()),
            train_dataset=job.train_rows(),
            **job.beside_the_model(task_type="SEQ_CLS", tokenizer="tokenizer"),
        )

    # ---- data ----

    def prepare_rows(self, dataset: Any, name: str) -> Any:
        """Encoded pairs of a dataset; a collator that was given reads it as it is."""
        if not self.reads_rows:
            return dataset
        check_finite(dataset, name)
        reader = RowReader(self.tokenizer_of_rows, Lengths(), num_proc=self.args.dataset_num_proc)
        found = read_pair_rows(dataset, reader, name=name, max_length=self.max_length, too_long=self.args.too_long)
        self.left_out[name], self.num_truncated[name] = found.left_out, found.num_truncated
        return found.rows

    # ---- steps ----

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected completions, from one pass; each of shape (n,)."""
        pad_id = getattr(getattr(self.accelerator.unwrap_model(model), "config", None), "pad_token_id", None) or 0
        scores = scores_of(
            model,
            input_ids=stacked(batch, PAIR, "input_ids", fill=pad_id),
            attention_mask=stacked(batch, PAIR, "attention_mask"),
        )
        chosen, rejected = scores.chunk(2)
        refuse_non_finite(batch, chosen, rejected, step=self.state.global_step, what="scores")
        return chosen, rejected

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - the base class hands it over
    ) -> Any:
        """Mean loss of a training batch, with the scores and losses of its pairs if `return_outputs`."""
        batch = with_our_names(inputs)
        chosen, rejected = self._scores(model, batch)
        result = self._loss(batch, chosen, rejected)
        number, share = own_share(batch, len(chosen))
        counted = RewardLoss(*(values[:number] for values in result))
        self._train_sums.add(_metrics(chosen[:number], rejected[:number], counted))
        loss = counted.losses.mean() * share if number else counted.losses.sum()
        outputs = {"rewards_chosen": chosen, "rewards_rejected": rejected, "losses": result.losses}
        return (loss, outputs) if return_outputs else loss

    def _loss(self, batch: Batch, chosen: Tensor, rejected: Tensor) -> RewardLoss:
        numbers = {name: batch.get(column) for name, column in (("margins", "margin"), ("weights", "weight"))}
        return reward_loss(
            chosen,
            rejected,
            **{name: None if values is None else values.to(chosen) for name, values in numbers.items()},
            centering=self.args.center_rewards_coefficient,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the base class hands it over
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss of an evaluation batch and, if wanted, the probabilities of chosen and rejected (n, 2), and zeros."""
        batch = with_our_names(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            chosen, rejected = self._scores(model, batch)
        result = self._loss(batch, chosen, rejected)
        own = slice(num_own_rows(len(chosen), self.accelerator))
        counted = RewardLoss(*(values[own] for values in result))
        self._eval_sums.add({**_metrics(chosen[own], rejected[own], counted), "loss": share_of(counted.losses)})
        mean = result.losses.mean()
        if prediction_loss_only:
            return mean, None, None
        probabilities = torch.stack([chosen, rejected], dim=1).softmax(dim=1)
        return mean, probabilities, torch.zeros(len(chosen), device=chosen.device)


def _loaded(model: Any) -> Any:
    source = name_of(model)
    if source is None:
        return model
    return AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, use_safetensors=True)


def _metrics(chosen: Tensor, rejected: Tensor, result: RewardLoss) -> dict[str, Share]:
    return {
        "rewards/chosen": share_of(chosen),
        "rewards/rejected": share_of(rejected),
        # A tie is half right: a model that knows nothing has an accuracy of 1/2.
        "accuracy": share_of((result.leads.sign() + 1) / 2),
    }
