"""Configuration of PPO, with the arguments, order and defaults that `PPOTrainer` documents."""

import dataclasses
import math
from typing import Annotated, Any

from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from stages.losses.kl_penalty import KLPenalty
from stages.trainers.core.fields import check_fields, refuse_slip

_Share = Annotated[float, Interval(ge=0, le=1)]


@dataclasses.dataclass
class PPOConfig:
    """How a policy is trained by PPO."""

    exp_name: str = "doc-buil"
    """Name of the experiment; the documented default is what a script's name was when the documentation was built."""
    seed: int = 0
    """Seed of the order of rows in an epoch, and of the global generators when the trainer is made."""
    log_with: str | None = None
    """Tracker of accelerate that statistics go to, such as "tensorboard" or "wandb"; a list names several."""
    task_name: str | None = None
    """What the policy is trained for; only for your own records."""
    model_name: str | None = None
    """Repository that the policy came from, for its card."""
    query_dataset: str | None = None
    """Where the queries came from; only for your own records."""
    reward_model: str | None = None
    """What gave the scores; only for your own records."""
    remove_unused_columns: bool = True
    """Whether the dataloader drops columns that neither the model nor a log reads."""
    tracker_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the trackers, by the tracker's name."""
    accelerator_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of `accelerate.Accelerator`."""
    project_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of `accelerate.utils.ProjectConfiguration`, such as `logging_dir`."""
    tracker_project_name: str = "trl"
    """Project in the tracker."""
    push_to_hub_if_best_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of `PPOTrainer.push_to_hub`, `repo_id` among them: the model is uploaded when its mean score is the
    best so far. Empty uploads nothing."""
    steps: PositiveInt = 20000
    """Responses to train on; tells `total_ppo_epochs`, and ends nothing by itself."""
    learning_rate: PositiveFloat = 1e-5
    """Learning rate of Adam, after warm-up; of no use where an optimizer is given."""
    adap_kl_ctrl: bool = True
    """Whether the coefficient of the penalty follows the distance from the reference; else it stays."""
    init_kl_coef: NonNegativeFloat = 0.2
    """Coefficient of the penalty at the start."""
    kl_penalty: KLPenalty = "kl"
    """How the distance from the reference is measured."""
    target: PositiveFloat | None = 6
    """Distance that the coefficient is steered to, in nats per response."""
    horizon: PositiveFloat | None = 10000
    """Responses over which it is steered; the larger, the slower."""
    gamma: _Share = 1
    """What a reward counts one token earlier."""
    lam: _Share = 0.95
    """Weight of far-sighted advantages."""
    cliprange: PositiveFloat = 0.2
    """How far a token's ratio of probabilities may go from 1 before it stops counting."""
    cliprange_value: PositiveFloat = 0.2
    """How far a value may go from the one before the step."""
    vf_coef: NonNegativeFloat = 0.1
    """What the loss of the value head is multiplied by."""
    batch_size: PositiveInt = 256
    """Responses of a step, in each process."""
    forward_batch_size: int | None = None
    """Former name of `mini_batch_size`."""
    mini_batch_size: PositiveInt = 1
    """Responses in the model at once."""
    gradient_accumulation_steps: PositiveInt = 1
    """Mini-batches of an optimizer step."""
    world_size: int | None = None
    """Processes; filled by the trainer."""
    ppo_epochs: PositiveInt = 4
    """Passes over the responses of a step."""
    max_grad_norm: PositiveFloat | None = None
    """Norm that gradients are clipped to in every optimizer step; None clips none."""
    optimize_cuda_cache: bool | None = None
    """Former name of `optimize_device_cache`."""
    optimize_device_cache: bool | None = False
    """Whether the memory that the device keeps for reuse is given back after each step."""
    early_stopping: bool = False
    """Whether a step ends before the policy goes further than 1.5 times `target_kl` from where it sampled."""
    target_kl: PositiveFloat = 1
    """That distance, in nats per token."""
    compare_steps: PositiveInt = 1
    """Steps between two looks at whether the mean score is the best so far."""
    ratio_threshold: PositiveFloat = 10.0
    """Mean ratio of probabilities above which a mini-batch is left out of the optimizer step."""
    use_score_scaling: bool = False
    """Whether scores are divided by the standard deviation of all scores so far."""
    use_score_norm: bool = False
    """Whether their mean is taken off first; needs `use_score_scaling`."""
    score_clip: PositiveFloat | None = None
    """Bound of the scores' magnitude, after scaling; None sets none."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to variance 1 before advantages are computed."""
    is_encoder_decoder: bool | None = None
    """Whether the model is an encoder-decoder; filled by the trainer."""
    is_peft_model: bool | None = None
    """Whether the model has an adapter; filled by the trainer."""
    backward_batch_size: int | None = None
    """Responses of an optimizer step in each process; filled here."""
    global_backward_batch_size: int | None = None
    """The same of all processes; filled by the trainer."""
    global_batch_size: int | None = None
    """Responses of a step of all processes; filled by the trainer."""

    def __post_init__(self) -> None:
        """Carry former names over, check the arguments and fill what follows from them.

        Raises:
            ValueError: an argument is out of range, or two contradict each other.
        """
        self._carry_over("forward_batch_size", "mini_batch_size", 1)
        self._carry_over("optimize_cuda_cache", "optimize_device_cache", False)
        check_fields(self)
        self._check_agreement()
        self.backward_batch_size = self.mini_batch_size * self.gradient_accumulation_steps
        if self.batch_size % self.backward_batch_size:
            raise ValueError(
                "expected batch_size as a multiple of mini_batch_size * gradient_accumulation_steps "
                f"({self.backward_batch_size}), found {self.batch_size}"
            )
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)
        self.spread_over(self.world_size or 1)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_slip(self, name)
        super().__setattr__(name, value)

    def spread_over(self, world_size: int) -> None:
        """Fill what follows from the number of processes."""
        self.world_size = world_size
        self.global_batch_size = self.batch_size * world_size
        self.global_backward_batch_size = (self.backward_batch_size or 1) * world_size

    def to_dict(self) -> dict[str, Any]:
        """The arguments on one level: an entry of a dict stands as "name/entry", as trackers want it."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            entries = value.items() if isinstance(value, dict) else [(None, value)]
            flat.update({name if key is None else f"{name}/{key}": entry for key, entry in entries})
        return flat

    def _carry_over(self, former: str, successor: str, default: Any) -> None:
        value, current = getattr(self, former), getattr(self, successor)
        if value is None:
            return
        if current not in {default, value}:
            raise ValueError(
                f"expected one of {former} and {successor}, found {former}={value} and {successor}={current}; leave "
                f"out {former}, which is the old name"
            )
        setattr(self, successor, value)

    def _check_agreement(self) -> None:
        # Slow to import, and what reads params.yaml has no use for it.
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # type: ignore[import-untyped] # ships no types

        trackers = self.log_with if isinstance(self.log_with, list | tuple) else [self.log_with]
        known = ["all", *LOGGER_TYPE_TO_CLASS]
        for tracker in trackers:
            if isinstance(tracker, str) and tracker not in known:
                raise ValueError(f"expected log_with as one of {', '.join(known)} or None, found {tracker!r}")
        if self.adap_kl_ctrl and None in {self.target, self.horizon}:
            raise ValueError(
                f"expected target and horizon with adap_kl_ctrl, found {self.target} and {self.horizon}; set both, or "
                "switch it off"
            )
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("expected use_score_scaling with use_score_norm, found it off; set both or none")
        if self.push_to_hub_if_best_kwargs and "repo_id" not in self.push_to_hub_if_best_kwargs:
            raise ValueError("expected a repo_id in push_to_hub_if_best_kwargs, found none; name the repository")
