"""Arguments of transformers 4 on transformers 5: the names, order and defaults that the trainers document.

Arguments that were renamed are carried over to their new name. Those that are gone are taken at their documented
default, where they asked for nothing, and refused otherwise, with what to use instead.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from transformers import TrainingArguments

from stages.trainers.core.fields import check_kind, meant, refuse_slip

ConfigT = TypeVar("ConfigT", bound=TrainingArguments)


class Former(NamedTuple):
    """An argument that transformers 5 has no more."""

    kind: Any
    default: Any
    remedy: str
    """What does its work now: a sentence if `successor` is None."""
    successor: str | None = None
    """Argument that has taken its place."""
    carry: Callable[[Any], Any] = lambda value: value
    """The successor's value for a value of this argument."""


def _renamed(kind: Any, default: Any, successor: str, carry: Callable[[Any], Any] = lambda value: value) -> Former:
    return Former(kind, default, f"use {successor}", successor, carry)


_PRECISION = "bf16=True or fp16=True chooses the precision"
_FSDP = "set it in fsdp_config"
_TPU = "training on TPUs is configured through accelerate"
FORMER_ARGUMENTS: dict[str, Former] = {
    "overwrite_output_dir": Former(bool, False, "empty output_dir yourself, or go on with resume_from_checkpoint"),
    "evaluation_strategy": _renamed(str | None, None, "eval_strategy"),
    "per_gpu_train_batch_size": _renamed(int | None, None, "per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _renamed(int | None, None, "per_device_eval_batch_size"),
    "warmup_ratio": _renamed(float, 0.0, "warmup_steps"),
    "logging_dir": Former(str | None, None, "the environment variable TENSORBOARD_LOGGING_DIR names the folder"),
    "save_safetensors": Former(bool, True, "weights are always saved as safetensors"),
    "no_cuda": _renamed(bool, False, "use_cpu"),
    "use_mps_device": Former(bool, False, "an MPS device is used where there is one"),
    "jit_mode_eval": Former(bool, False, "use torch_compile"),
    "use_ipex": Former(bool, False, "use torch_compile"),
    "fp16_opt_level": Former(str, "O1", _PRECISION),
    "half_precision_backend": Former(str, "auto", _PRECISION),
    "fp16_backend": Former(str, "auto", _PRECISION),
    "tpu_num_cores": Former(int | None, None, _TPU),
    "tpu_metrics_debug": Former(bool, False, _TPU),
    "past_index": Former(int, -1, "preference training reads no past keys and values"),
    "fsdp_min_num_params": Former(int, 0, _FSDP),
    "fsdp_transformer_layer_cls_to_wrap": Former(str | None, None, _FSDP),
    "adafactor": _renamed(bool, False, "optim", lambda _: "adafactor"),
    "group_by_length": _renamed(bool, False, "train_sampling_strategy", lambda _: "group_by_length"),
    "use_legacy_prediction_loop": Former(bool, False, "there is one evaluation loop"),
    "include_inputs_for_metrics": _renamed(bool, False, "include_for_metrics", lambda _: ["inputs"]),
    "push_to_hub_model_id": _renamed(str | None, None, "hub_model_id"),
    "push_to_hub_organization": Former(str | None, None, "write it into hub_model_id, as organization/name"),
    "push_to_hub_token": _renamed(str | None, None, "hub_token"),
    "mp_parameters": Former(str, "", "model parallelism is configured through accelerate"),
    "torchdynamo": _renamed(str | None, None, "torch_compile_backend"),
    "ray_scope": Former(str, "last", "hyperparameter_search takes it as an argument of its own"),
    "include_tokens_per_second": Former(bool, False, "use include_num_input_tokens_seen"),
    "dispatch_batches": Former(bool | None, None, "set it in accelerator_config"),
    "split_batches": Former(bool, False, "set it in accelerator_config"),
}

_ORDER_IN_4_55 = """
output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy prediction_loss_only
per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size
gradient_accumulation_steps eval_accumulation_steps eval_delay torch_empty_cache_steps learning_rate weight_decay
adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs
warmup_ratio warmup_steps log_level log_level_replica log_on_each_node logging_dir logging_strategy
logging_first_step logging_steps logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors
save_on_each_node save_only_model restore_callback_states_from_checkpoint no_cuda use_cpu use_mps_device seed
data_seed jit_mode_eval use_ipex bf16 fp16 fp16_opt_level half_precision_backend bf16_full_eval fp16_full_eval tf32
local_rank ddp_backend tpu_num_cores tpu_metrics_debug debug dataloader_drop_last eval_steps dataloader_num_workers
dataloader_prefetch_factor past_index run_name disable_tqdm remove_unused_columns label_names load_best_model_at_end
metric_for_best_model greater_is_better ignore_data_skip fsdp fsdp_min_num_params fsdp_config
fsdp_transformer_layer_cls_to_wrap accelerator_config deepspeed label_smoothing_factor optim optim_args adafactor
group_by_length length_column_name report_to ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
dataloader_pin_memory dataloader_persistent_workers skip_memory_metrics use_legacy_prediction_loop push_to_hub
resume_from_checkpoint hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
gradient_checkpointing gradient_checkpointing_kwargs include_inputs_for_metrics include_for_metrics
eval_do_concat_batches fp16_backend push_to_hub_model_id push_to_hub_organization push_to_hub_token mp_parameters
auto_find_batch_size full_determinism torchdynamo ray_scope ddp_timeout torch_compile torch_compile_backend
torch_compile_mode include_tokens_per_second include_num_input_tokens_seen neftune_noise_alpha optim_target_modules
batch_eval_metrics eval_on_start use_liger_kernel liger_kernel_config eval_use_gather_object
average_tokens_across_devices
"""
TRANSFORMERS_4_55 = tuple(_ORDER_IN_4_55.split())
"""Training arguments of transformers 4.55 in their order."""

_ORDER_IN_4_36 = """
output_dir overwrite_output_dir do_train do_eval do_predict evaluation_strategy prediction_loss_only
per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size
gradient_accumulation_steps eval_accumulation_steps eval_delay learning_rate weight_decay adam_beta1 adam_beta2
adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps
log_level log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors save_on_each_node save_only_model
no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval use_ipex bf16 fp16 fp16_opt_level half_precision_backend
bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend tpu_num_cores tpu_metrics_debug debug dataloader_drop_last
eval_steps dataloader_num_workers past_index run_name disable_tqdm remove_unused_columns label_names
load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip fsdp fsdp_min_num_params fsdp_config
fsdp_transformer_layer_cls_to_wrap deepspeed label_smoothing_factor optim optim_args adafactor group_by_length
length_column_name report_to ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers dataloader_pin_memory
dataloader_persistent_workers skip_memory_metrics use_legacy_prediction_loop push_to_hub resume_from_checkpoint
hub_model_id hub_strategy hub_token hub_private_repo hub_always_push gradient_checkpointing
gradient_checkpointing_kwargs include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_organization
push_to_hub_token mp_parameters auto_find_batch_size full_determinism torchdynamo ray_scope ddp_timeout torch_compile
torch_compile_backend torch_compile_mode dispatch_batches split_batches include_tokens_per_second
include_num_input_tokens_seen neftune_noise_alpha
"""
TRANSFORMERS_4_36 = tuple(_ORDER_IN_4_36.split())
"""The same of transformers 4.36."""

_FormerFields: Any = dataclasses.make_dataclass(
    "_FormerFields",
    [(name, former.kind, dataclasses.field(default=former.default)) for name, former in FORMER_ARGUMENTS.items()],
    bases=(TrainingArguments,),
)


@dataclasses.dataclass
class DocumentedArguments(_FormerFields, TrainingArguments):  # type: ignore[misc] # made from the table
    """`TrainingArguments` that also take what transformers 4 took, with the defaults that the trainers document."""

    logging_steps: float = 10
    """Optimizer steps between two lines of the log."""
    bf16: bool | None = None  # type: ignore[assignment] # None asks what the device can do
    """Whether to compute in bfloat16. None does where the accelerator can and fp16 isn't asked for; never on a CPU."""
    fsdp: str | None = ""
    """Sharding over devices; empty for none."""
    optim: str = "adamw_torch"
    """Optimizer."""
    report_to: None | str | list[str] = None  # noqa: RUF036 - HfArgumentParser can't read another order
    """Trackers that the log goes to; None for none."""
    lr_scheduler_kwargs: dict[str, Any] | str | None = dataclasses.field(default_factory=dict)
    """Further arguments of the learning rate schedule."""
    gradient_checkpointing: bool | None = False
    """Whether activations are computed again in the backward pass instead of being kept."""
    include_num_input_tokens_seen: str | bool = False
    """Whether the tokens seen are counted and logged."""

    def __post_init__(self) -> None:
        """Carry former arguments over, then let transformers check the rest.

        Raises:
            ValueError: a former argument asks for what is gone, or for something else than its successor does.
        """
        self._forget_masked_tokens()
        for name, former in FORMER_ARGUMENTS.items():
            if name != "warmup_ratio" and getattr(self, name) != _default_of(type(self), name):
                self._carry_over(name, former)
        self._carry_over_warmup_ratio()
        self._carry_over_gradient_checkpointing()
        self.fsdp = self.fsdp or None
        self.report_to = self.report_to or "none"
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _accelerator_has_bf16()
        super().__post_init__()  # type: ignore[no-untyped-call] # transformers
        self.__dict__["_is_made"], self.__dict__["_is_changed"] = True, False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_is_made"):
            refuse_slip(self, name)
        config: Any = type(self)
        if name in (hints := _hints_of(config)):
            check_kind(name, value, hints[name], may_be_none=name in _OF_TRANSFORMERS)
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if self.__dict__.get("_is_made"):
            self.__dict__["_is_changed"] = True
            self._follow(name, before)

    def settle(self) -> None:
        """Take up what was set since the arguments were made, as if it had been said then; trainers call it first.

        Raises:
            ValueError: as at construction.
        """
        if self.__dict__["_is_changed"]:
            self.__dict__["_is_made"] = False
            self.__post_init__()

    def _follow(self, name: str, before: Any) -> None:
        """Let what depends on an argument, which has just been set, agree with it: whoever speaks last is heard."""
        value = getattr(self, name)
        if name.startswith(("gradient_checkpointing", "activation_checkpointing")):
            kind, _, part = name.partition("_checkpointing")
            other = {"gradient": "activation", "activation": "gradient"}[kind]
            self.__dict__[f"{other}_checkpointing{part}"] = value
        elif name == "warmup_ratio":
            self.__dict__["warmup_steps"] = 0
        elif (former := FORMER_ARGUMENTS.get(name)) is not None:
            default = _default_of(type(self), name)
            if value != default and former.successor is None:
                self._carry_over(name, former)
            elif value != default or before not in (default, value):
                carried = former.carry(value) if value != default else _default_of(type(self), former.successor or "")
                self.__dict__[former.successor or ""] = carried
        else:
            for old, former in FORMER_ARGUMENTS.items():
                if former.successor == name:
                    self.__dict__[old] = _default_of(type(self), old)

    def _forget_masked_tokens(self) -> None:
        """`to_dict` writes the name of a token in place of the token."""
        for name in [name for name in vars(self) if name.endswith("_token")]:
            if getattr(self, name) == f"<{name.upper()}>":
                setattr(self, name, None)

    def __getstate__(self) -> dict[str, Any]:
        # Transformers pickles the arguments into folders that it pushes to the hub, where a token is no one's to read.
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def _carry_over(self, name: str, former: Former) -> None:
        value = getattr(self, name)
        if former.successor is None:
            raise ValueError(
                f"{name}={value!r}: transformers 5 has no such argument, so expected its default "
                f"{former.default!r}; {former.remedy}"
            )
        carried = former.carry(value)
        current = getattr(self, former.successor)
        if current not in (carried, _default_of(type(self), former.successor)):
            raise ValueError(
                f"expected one of {name} and {former.successor}, found {name}={value!r} and "
                f"{former.successor}={current!r}; leave out {name}, which is the old name"
            )
        setattr(self, former.successor, carried)

    def _carry_over_warmup_ratio(self) -> None:
        ratio = getattr(self, "warmup_ratio")  # noqa: B009 - a field made from the table above
        if not 0 <= ratio < 1:
            raise ValueError(f"expected warmup_ratio from 0 and below 1, found {ratio}; warmup_steps takes numbers")
        # As ever, a number of steps overrides the ratio; below 1 transformers 5 reads warmup_steps as a ratio.
        self.warmup_steps = self.warmup_steps or ratio

    def _carry_over_gradient_checkpointing(self) -> None:
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        self.activation_checkpointing_kwargs = (
            self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
        )
        self.gradient_checkpointing = self.gradient_checkpointing_kwargs = None


def settle(args: Any) -> None:
    """Let arguments that were set after construction have the effect that they have at construction.

    Args:
        args: arguments of a trainer.

    Raises:
        ValueError: one of them is unknown to transformers 5, and `args` are its own, which would ignore it.
    """
    if isinstance(args, DocumentedArguments):
        args.settle()
    elif isinstance(args, TrainingArguments):
        known = {field.name for field in dataclasses.fields(args)}
        for name, former in FORMER_ARGUMENTS.items():
            if name in vars(args) and name not in known:
                raise ValueError(
                    f"{name}={getattr(args, name)!r}: TrainingArguments of transformers 5 have no such argument; "
                    f"{former.remedy}"
                )


@functools.cache
def _hints_of(config: Any) -> dict[str, Any]:
    """Types of the fields whose values are looked at; what is gone is refused with its own remedy."""
    gone = {name for name, former in FORMER_ARGUMENTS.items() if former.successor is None}
    return {name: hint for name, hint in get_type_hints(config, include_extras=True).items() if name not in gone}


# Whether they may be None is for transformers to say.
_OF_TRANSFORMERS = {field.name for field in dataclasses.fields(TrainingArguments)} | {*FORMER_ARGUMENTS}


def _accelerator_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _default_of(config: type[TrainingArguments], name: str) -> Any:
    found = next(field for field in dataclasses.fields(config) if field.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def documented(*orders: Sequence[str]) -> Callable[[type[ConfigT]], type[ConfigT]]:
    """Make a class a dataclass whose arguments stand in the documented order, all others behind them.

    Inheritance alone would put the arguments in the order of transformers 5.

    Args:
        orders: names of arguments, one list after the other.
    """
    names = [name for order in orders for name in order]

    def decorate(cls: type[ConfigT]) -> type[ConfigT]:
        config = dataclasses.dataclass(cls)
        fill = config.__init__
        myself, *parameters = inspect.signature(fill).parameters.values()
        by_name = {parameter.name: parameter for parameter in parameters}
        vintage = [name for name in by_name if name not in names and name not in FORMER_ARGUMENTS]
        later = [name for name in FORMER_ARGUMENTS if name not in names]
        ordered = [by_name[name] for name in (*names, *vintage, *later)]
        signature = inspect.Signature([myself, *ordered])

        @functools.wraps(fill)
        def initialise(*args: Any, **kwargs: Any) -> None:
            for unknown in kwargs.keys() - signature.parameters.keys():
                near = meant(unknown, signature.parameters)
                hint = f"did you mean {near}?" if near else "docs/from-trl.md says what is taken"
                raise TypeError(f"{config.__name__} takes no argument {unknown}; {hint}")
            fill(**signature.bind(*args, **kwargs).arguments)

        initialise.__signature__ = signature  # type: ignore[attr-defined] # what inspect.signature reads
        config.__init__ = initialise  # type: ignore[method-assign] # same arguments, other order
        return config

    return decorate
