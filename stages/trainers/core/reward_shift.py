"""The reward shift of BCO while it follows a training, over micro-batches, optimizer steps and processes."""

from typing import Any, Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # the package ships no types
from torch import Tensor

from stages.losses.moments import RewardMoments, ShiftKind

ShiftUpdate = Literal["batch", "step"]


class RunningShift:
    """A mean of the rewards seen so far.

    Args:
        kind: mean over all rows, or of the means of the two classes.
        decay: what older rewards count after an update, relative to before.
        update: whether it moves with each micro-batch, before its loss, or after each optimizer step.
    """

    def __init__(self, kind: ShiftKind, *, decay: float, update: ShiftUpdate) -> None:
        self.kind, self.decay, self.update = kind, decay, update
        self.moments = RewardMoments.empty()
        self._waiting = RewardMoments.empty()

    def follow(self, rewards: Tensor, labels: Tensor, accelerator: Accelerator) -> None:
        """Take in a micro-batch of all processes, now or at the end of the optimizer step.

        Args:
            rewards: shape (n,).
            labels: whether each row is desired. Boolean, shape (n,).
            accelerator: knows the other processes, which call this together.
        """
        seen = RewardMoments.of(rewards, labels)
        if accelerator.num_processes > 1:
            tables = accelerator.gather(torch.stack(seen)[None])  # (processes, 3, 2)
            seen = RewardMoments.empty()
            for table in tables:
                seen = seen.merged(RewardMoments(*table))
        if self.update == "batch":
            self.moments = self.moments.merged(seen, decay=self.decay)
        else:
            self._waiting = self._waiting.merged(seen)

    def end_step(self) -> None:
        """Take in what waited for the end of the optimizer step."""
        if self.update == "step":
            self.moments = self.moments.merged(self._waiting, decay=self.decay)
            self._waiting = RewardMoments.empty()

    def value(self) -> Tensor:
        """The shift. Shape ()."""
        return self.moments.shift(self.kind)

    def state(self) -> dict[str, Any]:
        """The moments as plain numbers, of undesired rows and of desired ones."""
        return {name: values.tolist() for name, values in self.moments._asdict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; start anew from an empty one."""
        moments = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}
        self.moments = RewardMoments(**moments) if moments else RewardMoments.empty()
        self._waiting = RewardMoments.empty()
