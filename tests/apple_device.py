"""Stand-in for Apple's accelerator, which has no float64 and which no test machine has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MPS = torch.device("mps", 0)


class _NoDoubles(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "mps" and tensor.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return found


@contextmanager
def without_doubles() -> Iterator[None]:
    """Tensors have a device and a type but no values; one of float64 on `MPS` is an error, as it is there."""
    with FakeTensorMode(), _NoDoubles():
        yield
