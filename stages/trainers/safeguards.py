"""What stops a run before it spoils the policy: numbers that aren't finite, and steps that teach nothing."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STEPS_WITHOUT_GRADIENT = 10


def refuse_non_finite(batch: Mapping[str, Any], *logps: Tensor, step: int) -> None:
    """Raise if a row's log-probability isn't finite.

    Args:
        batch: for the names of the rows.
        logps: log-probabilities under policy and reference; each of shape (sequences * n,).
        step: number of the optimizer step, for the message.

    Raises:
        ValueError: one isn't finite; up to five rows are named.
    """
    wrong = ~torch.stack([tensor.detach().isfinite() for tensor in logps]).all(0)
    if wrong.any():
        places = wrong.nonzero().flatten().tolist()[:5]
        known = batch.get("row_id") or [f"{index} of the batch" for index in range(len(wrong))]
        names = dict.fromkeys(known[place % len(known)] for place in places)
        raise ValueError(
            f"step {step}: expected finite log-probabilities, found others in {', '.join(names)}; "
            "the weights are as before this step: look at these rows, or lower learning_rate"
        )


class GradientWatch:
    """Looks at the gradient's norm before each optimizer step."""

    def __init__(self) -> None:
        self.steps_without = 0

    def look(self, norm: float, *, step: int) -> None:
        """Take note of the norm at `step`.

        Raises:
            ValueError: the norm isn't finite, or has been 0 in too many steps on end.
        """
        if not math.isfinite(norm):
            raise ValueError(
                f"step {step}: expected a finite gradient, found norm {norm}; the weights are as before this step: "
                "lower learning_rate, or look at the rows of the batch"
            )
        self.steps_without = 0 if norm > 0 else self.steps_without + 1
        if self.steps_without == STEPS_WITHOUT_GRADIENT:
            raise ValueError(
                f"step {step}: expected the policy to learn, found no gradient in {STEPS_WITHOUT_GRADIENT} steps; look "
                "at the weights of the rows and at what is trainable"
            )
