"""Arguments of the reward trainer, and what is checked of them before a model is loaded."""

from typing import Any

from stages.trainers.core.arguments import TRANSFORMERS_4_36, DocumentedArguments, documented
from stages.trainers.core.fields import check_choice
from stages.trainers.reward.rows import TooLong, check_max_length


@documented(TRANSFORMERS_4_36, ("max_length",))
class RewardConfig(DocumentedArguments):
    """Arguments of `RewardTrainer`: those of `TrainingArguments`, and how long rows may be."""

    evaluation_strategy: str | None = "no"
    """Former name of `eval_strategy`."""
    logging_steps: float = 500
    """Optimizer steps between two lines of the log."""
    bf16: bool | None = False
    """Whether to compute in bfloat16."""
    hub_private_repo: bool | None = False
    """Whether the repository that the model is pushed to is private."""
    gradient_checkpointing: bool | None = True
    """Whether activations are computed again in the backward pass instead of being kept."""
    max_length: int | None = None
    """Tokens of prompt and completion together, at most. None sets no limit."""
    too_long: TooLong = "truncate"
    """What happens to a pair with a longer row: "truncate" cuts the row's end off, "drop" leaves the pair out."""
    disable_dropout: bool = False
    """Whether dropout is off; that of an adapter belongs to its own configuration."""
    dataset_num_proc: int | None = None
    """Processes that encode raw rows. None takes one."""
    center_rewards_coefficient: float | None = None
    """What scores cost that aren't centered around 0, as a multiple of the square of a pair's sum; 0.01 in
    https://arxiv.org/abs/2312.09244. None asks for nothing."""

    def __post_init__(self) -> None:
        """Check the method's arguments.

        Raises:
            ValueError: one is out of range, or asks for what a loss on pairs hasn't.
        """
        check_max_length(self.max_length)
        if self.center_rewards_coefficient is not None and not 0 <= self.center_rewards_coefficient < float("inf"):
            raise ValueError(
                f"expected center_rewards_coefficient from 0, found {self.center_rewards_coefficient}; None centers "
                "nothing"
            )
        check_choice("too_long", self.too_long, TooLong)
        if self.label_smoothing_factor:
            raise ValueError(
                f"expected label_smoothing_factor 0, for pairs have no labels to smooth, found "
                f"{self.label_smoothing_factor}; give doubtful pairs a smaller weight or a margin below 0"
            )
        super().__post_init__()


def checked_length(args: Any, max_length: int | None) -> int | None:
    """The greatest length of a row, which may stand in the arguments of the trainer or in its configuration.

    Raises:
        ValueError: it is out of range or stands in both with two values, or `args` is no `RewardConfig`.
    """
    if not isinstance(args, RewardConfig):
        raise ValueError(
            f"expected args as a RewardConfig, found {type(args).__name__}; it takes the same arguments and max_length"
        )
    check_max_length(max_length)
    if None not in (max_length, args.max_length) and max_length != args.max_length:
        raise ValueError(
            f"expected one max_length, found {max_length} and args.max_length {args.max_length}; leave one out"
        )
    return args.max_length if max_length is None else max_length


def check_adapter(peft_config: Any) -> None:
    """See that a new head doesn't keep its first, random weights beside an adapter.

    Raises:
        ValueError: the adapter's configuration doesn't say that the head is trained.
    """
    if peft_config is None or getattr(peft_config, "modules_to_save", None):
        return
    task = getattr(peft_config.task_type, "value", peft_config.task_type)
    if task != "SEQ_CLS":
        raise ValueError(
            f'expected peft_config with task_type="SEQ_CLS", which trains the head as well, found {task!r}; set it, or '
            "name what else is trained in modules_to_save"
        )
