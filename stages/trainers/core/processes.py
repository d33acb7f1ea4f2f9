"""The processes that share a training, as torchrun or accelerate started them."""

import os

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin  # type: ignore[import-untyped] # the package ships no types
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped] # likewise
from torch import nn
from transformers import TrainingArguments

from stages.contracts import stopping
from stages.contracts.stage import RUN_KEY


def num_processes() -> int:
    """How many processes share this training.

    Raises:
        ValueError: a launcher was asked for and started this process alone, without telling it its rank.
    """
    if RUN_KEY in os.environ and "RANK" not in os.environ:
        raise ValueError(
            "expected a launcher that tells each process its rank, found none; accelerate starts a single process of a "
            "profile with distributed_type MULTI_CPU or NO: take MULTI_GPU, FSDP or DEEPSPEED, also on CPUs"
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_asked_to_stop(accelerator: Accelerator) -> bool:
    """Whether a process of this training was asked to end; all of them call it together, and stop at one step."""
    asked = stopping.is_asked_to_stop()
    if not stopping.is_watching() or accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), reduction="sum").item())


def rows_per_process(batch_size: int) -> int:
    """Rows that each process takes of a batch of all of them.

    A batch is cut into equal parts and never enlarged, so that a step learns from the same rows in any number of
    processes.

    Args:
        batch_size: rows of a batch over all processes.

    Raises:
        ValueError: it can't be cut into equal parts.
    """
    number = num_processes()
    if batch_size % number:
        raise ValueError(
            f"expected per_device_train_batch_size as a multiple of the {number} processes that share its rows, "
            f"found {batch_size}; start another number of processes"
        )
    return batch_size // number


def shard_on_cpu(args: TrainingArguments) -> None:
    """Make FSDP hold on CPUs too, where accelerate asks for it and then trains whole copies without a word.

    To be called between the configuration and the trainer, for both set up the state that all accelerators share. Again
    changes nothing.

    Args:
        args: configuration of the training.
    """
    if not args.use_cpu or num_processes() == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    plugin = FullyShardedDataParallelPlugin()
    Accelerator(cpu=True, mixed_precision=args.mixed_precision, fsdp_plugin=plugin)
    # Each look at the second takes over what the first says.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


def whole_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The weights of a model that is spread over processes, in the first process; None for one that isn't spread.

    All processes call it together.
    """
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return None
    weights: dict[str, torch.Tensor] = accelerator.get_state_dict(model)
    # Gathered, the two names of one weight are two tensors; a whole model is saved with one of them.
    tied = getattr(accelerator.unwrap_model(model), "all_tied_weights_keys", {})
    return {name: weight for name, weight in weights.items() if name not in tied}
