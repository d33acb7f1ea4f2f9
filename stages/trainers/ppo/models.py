"""What a PPO trainer holds: policy and reference, how they are sampled from, data, trackers and files."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from accelerate.utils import ProjectConfiguration  # type: ignore[import-untyped] # the same
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from stages.contracts.files import write_text
from stages.models.hub import upload
from stages.models.value_head import PreTrainedModelWithValueHead
from stages.trainers.core.model_card import model_card
from stages.trainers.core.seeding import set_seed
from stages.trainers.ppo.config import PPOConfig
from stages.trainers.ppo.control import AdaptiveKLController, FixedKLController, ScoreScaler
from stages.trainers.ppo.hub import BestScore
from stages.trainers.ppo.sampling import generation_arguments, sample_batches, sample_one
from stages.trainers.ppo.setup import check_arguments, choose_reference, used_columns, without_dropout
from stages.trainers.ppo.state import load_trainer_state, save_trainer_state
from stages.trainers.ppo.step_log import log_to_trackers, reward_statistics, text_rows
from stages.trainers.ppo.update import OptimizerSteps

Policy: TypeAlias = PreTrainedModelWithValueHead


class PPOModels:
    """Policy, reference and what stands around them; `PPOTrainer` trains with them.

    Args:
        config: how to train.
        model: the policy, with its value head. Its dropout is switched off.
        ref_model: the reference, with or without a value head. None takes the policy as it is now: without the
            adapter that was laid on it, with frozen copies of one that was trained before, else a copy of the whole.
        tokenizer: names the padding token, and pads on its side.
        dataset: rows of which `dataloader` makes batches; None makes no dataloader.
        optimizer: of the policy's parameters; None makes Adam with `config.learning_rate`.
        data_collator: makes a batch of the dataset's rows.
        num_shared_layers: layers of the policy, from the first on, that are frozen and stand in the reference as
            well; None copies all and freezes none.
        lr_scheduler: moved on after each step.

    Raises:
        ValueError: an argument is of another kind, or two contradict each other.
    """

    method: ClassVar[str] = "ppo"
    """Short name of the method."""

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        config: PPOConfig | None = None,
        model: Policy | None = None,
        ref_model: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[Any], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        check_arguments(config, model, ref_model, tokenizer, num_shared_layers, optimizer, lr_scheduler)
        config, policy, tokenizer = (
            cast(PPOConfig, config),
            cast(Policy, model),
            cast(PreTrainedTokenizerBase, tokenizer),
        )
        self.config, self.tokenizer = config, tokenizer
        self.accelerator = Accelerator(
            log_with=self.config.log_with,
            project_config=ProjectConfiguration(**self.config.project_kwargs),
            **self.config.accelerator_kwargs,
        )
        self.config.spread_over(self.accelerator.num_processes)
        self.config.is_encoder_decoder, self.config.is_peft_model = policy.is_encoder_decoder, policy.is_peft_model
        set_seed(self.config.seed)
        # Its own stream: what a reward function draws doesn't change the order of the rows.
        self.random = np.random.RandomState(self.config.seed)

        without_dropout(policy)
        self.reference = choose_reference(
            policy, ref_model, num_shared_layers=num_shared_layers, device=self.accelerator.device
        )
        self.ref_model = getattr(self.reference, "model", None)
        parameters = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = optimizer or torch.optim.Adam(parameters, lr=self.config.learning_rate)
        self.lr_scheduler = lr_scheduler
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.data_collator = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
        self.dataset = dataset
        if dataset is None:
            warnings.warn(
                f"no dataset: each step takes batch_size={config.batch_size} queries of your own",
                UserWarning,
                stacklevel=2,
            )
        self.dataloader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)

        control = self.config
        self.kl_ctl: AdaptiveKLController | FixedKLController = (
            AdaptiveKLController(control.init_kl_coef, control.target, control.horizon)  # type: ignore[arg-type] # checked
            if control.adap_kl_ctrl
            else FixedKLController(control.init_kl_coef)
        )
        self.running = ScoreScaler(self.accelerator)
        self.best_score = BestScore(self.config.compare_steps)
        self.current_step = 0
        self.updates = OptimizerSteps(self.accelerator, self.optimizer, parameters, self.config)
        self._start_trackers()

    # ---- sampling ----

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses of the policy, sampled in evaluation mode.

        Args:
            query_tensor: ids of a query, of shape (q,), or a list of such tensors.
            length_sampler: gives the number of new tokens, once per batch. None leaves it to `generation_kwargs`.
            batch_size: queries in the model at once, where there are several.
            return_prompt: whether a causal model's response stands behind its query; a query may hold
                end-of-sequence tokens.
            generate_ref_response: whether the reference samples as well.
            generation_kwargs: arguments of the model's `generate`.

        Returns:
            For one query, a tensor of shape (1, length). For a list, a list of tensors, each up to and with the
            first end-of-sequence token behind the query. With `generate_ref_response`, that of the policy and that
            of the reference.
        """
        policy = self._policy()
        kwargs = generation_arguments(policy, self.tokenizer, generation_kwargs)
        kwargs |= {"length_sampler": length_sampler, "return_prompt": return_prompt}

        def sampled(model: Policy) -> Any:
            with self.accelerator.autocast():
                if isinstance(query_tensor, list):
                    return sample_batches(model, self.tokenizer, query_tensor, batch_size=batch_size, **kwargs)
                return sample_one(model, query_tensor, **kwargs)

        response = sampled(policy)
        if not generate_ref_response:
            return response
        with self._reference() as reference:
            return response, sampled(reference)

    # ---- trackers ----

    def log_stats(
        self,
        stats: Mapping[str, Any],
        batch: Mapping[str, Any],
        rewards: Sequence[Any],
        columns_to_log: Sequence[str] = ["query", "response"],
    ) -> None:
        """Send a step's statistics, the rewards and the texts to the trackers.

        Args:
            stats: what `step` gave.
            batch: columns of texts.
            rewards: of the responses.
            columns_to_log: columns shown in the table of texts.

        Raises:
            ValueError: the batch lacks a column.
        """
        if self.config.log_with is None:
            return
        stats = {**stats, **reward_statistics(rewards, self.accelerator)}
        rows = text_rows(batch, rewards, columns_to_log)
        if self.accelerator.is_main_process:
            log_to_trackers(self.accelerator, stats, rows, columns_to_log, step=self.current_step)

    def _start_trackers(self) -> None:
        if self.config.log_with is None:
            return
        settings = self.config.to_dict()
        plain = {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}
        self.accelerator.init_trackers(
            self.config.tracker_project_name, config=plain, init_kwargs=self.config.tracker_kwargs
        )

    # ---- data, files ----

    def prepare_dataloader(
        self, dataset: Any = None, data_collator: Callable[[Any], Any] | None = None
    ) -> DataLoader[Any]:
        """Batches of `config.batch_size` rows in an order that the seed decides; the last, smaller one is left out.

        Args:
            dataset: rows; of one of `datasets`, columns that nothing reads are left out. None takes the trainer's.
            data_collator: makes a batch of rows; None stacks their tensors.

        Raises:
            ValueError: there are too few rows for one batch.
        """
        dataset = self.dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("expected a dataset, found none here and none at construction; give one")
        if isinstance(dataset, Mapping):
            raise ValueError(
                f"expected one dataset, found {type(dataset).__name__} of {', '.join(map(str, dataset))}; give "
                "one of them"
            )
        if self.config.remove_unused_columns:
            dataset = used_columns(dataset, self._policy())
        if len(dataset) < self.config.batch_size:
            raise ValueError(
                f"expected at least batch_size={self.config.batch_size} rows, found {len(dataset)}; lower batch_size"
            )
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        return cast(DataLoader[Any], self.accelerator.prepare_data_loader(loader))

    def create_model_card(self, path: str, model_name: str | None = "TRL Model") -> None:
        """Write the model's page.

        Args:
            path: folder to write README.md into.
            model_name: what the page calls the model.
        """
        write_text(Path(path) / "README.md", self.card(base_model=self.config.model_name, name=model_name))

    def card(self, base_model: str | None = None, *, name: str | None = None) -> str:
        """Text of the model's page.

        Args:
            base_model: repository that the policy came from; None says nothing.
            name: what the page calls the model; None says nothing.
        """
        shown = ("learning_rate", "batch_size", "ppo_epochs", "kl_penalty", "init_kl_coef", "cliprange", "seed")
        settings = {} if name is None else {"name": name}
        return model_card(
            method=self.method,
            title="Proximal Policy Optimization",
            paper="https://arxiv.org/abs/1909.08593",
            base_model=base_model,
            settings={**settings, **{name: getattr(self.config, name) for name in shown}},
            is_adapter=bool(self.config.is_peft_model),
            is_encoder_decoder=bool(self.config.is_encoder_decoder),
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write model, value head, tokenizer and page; all processes call it together.

        Args:
            save_directory: folder to write.
        """
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            self._policy().save_pretrained(save_directory, state_dict=weights)
            self.tokenizer.save_pretrained(str(save_directory))
            self.create_model_card(str(save_directory))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload what `save_pretrained` writes.

        Args:
            repo_id: repository, made if there is none.
            kwargs: see `stages.models.hub.upload`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if self.accelerator.is_main_process:
                upload(Path(folder), repo_id, **kwargs)
        self.accelerator.wait_for_everyone()

    def save_state(self, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
        """Write all that a trainer made alike needs to go on to the same bits; all processes call it together.

        Args:
            folder: folder to write; it is there whole or not at all.
            extra: finite JSON values to keep with it.
        """
        save_trainer_state(self, folder, extra or {})

    def load_state(self, folder: Path) -> dict[str, Any]:
        """Go on from what `save_state` wrote; gives what was kept with it.

        Raises:
            ValueError: there is no whole state in the folder.
        """
        return load_trainer_state(self, folder)

    def method_state(self) -> dict[str, Any]:
        """What steers PPO, as plain numbers."""
        return {"kl_coef": self.kl_ctl.value, "scores": self.running.state()}

    # ---- models ----

    @property
    def model_wrapped(self) -> Any:
        """The policy as it was prepared for training in parallel."""
        return self.model

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The tokenizer, under the name that other trainers have for it."""
        return self.tokenizer

    def _policy(self) -> Policy:
        policy: Policy = self.accelerator.unwrap_model(self.model)
        return policy

    @contextmanager
    def _reference(self) -> Iterator[Policy]:
        """The reference with its value head, for the length of a pass."""
        with self.reference.active() as model:
            yield model if isinstance(model, PreTrainedModelWithValueHead) else self._policy()
