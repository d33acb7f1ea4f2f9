"""What pytest loads before the suites: names that later versions of their libraries have no more."""

from itertools import chain
from typing import Any

import huggingface_hub
import torch
import transformers

_init = transformers.Trainer.__init__


def _init_without_idle_evaluation(self: Any, *args: Any, **kwargs: Any) -> None:
    """Transformers 4 let arguments ask for evaluation where there is nothing to evaluate on; 5 refuses them."""
    if kwargs.get("eval_dataset") is None and "args" in kwargs:
        kwargs["args"].eval_strategy = "no"
    _init(self, *args, **kwargs)


transformers.Trainer.__init__ = _init_without_idle_evaluation


class _HfFolder:
    @staticmethod
    def save_token(token: str) -> None:
        """Keep nothing: there is no hub to show it to."""


def _delete_repo(**_: object) -> None:
    """Nothing was made."""


def _zero_grad(self: Any, set_to_none: bool = True) -> None:
    """Zeros where gradients were: the suites look behind a step for which weights had one."""
    is_model = isinstance(self, torch.nn.Module)
    for weight in self.parameters() if is_model else chain(*(group["params"] for group in self.param_groups)):
        if weight.grad is not None:
            weight.grad.detach_().zero_()


torch.optim.Optimizer.zero_grad = torch.nn.Module.zero_grad = _zero_grad
huggingface_hub.HfFolder = _HfFolder
huggingface_hub.delete_repo = _delete_repo
