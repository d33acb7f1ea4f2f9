"""What stops a run before it spoils the policy: numbers that aren't finite, and steps that teach nothing."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STEPS_WITHOUT_GRADIENT = 10


def refuse_non_finite(batch: Mapping[str, Any], *values: Tensor, step: int, what: str = "log-probabilities") -> None:
    """Raise if what a model gave a row isn't finite.

    Args:
        batch: for the names of the rows.
        values: such as log-probabilities under policy and reference; each of shape (sequences * n,).
        step: number of the optimizer step, for the message.
        what: what the values are, for the message.

    Raises:
        ValueError: one isn't finite; up to five rows are named.
    """
    wrong = ~torch.stack([tensor.detach().isfinite() for tensor in values]).all(0)
    if wrong.any():
        places = wrong.nonzero().flatten().tolist()[:5]
        known = batch.get("row_id")
        if known is None:
            known = [f"{index} of the batch" for index in range(len(wrong))]
        # Texts, or numbers in a tensor.
        names = dict.fromkeys(f"{known[place % len(known)]}" for place in places)
        raise ValueError(
            f"step {step}: expected finite {what}, found others in {', '.join(names)}; "
            "the weights are as before this step: look at these rows, or lower learning_rate"
        )


class GradientWatch:
    """Looks at the gradient's norm before each optimizer step.

    Args:
        has_learned: whether the policy has had a gradient before, as in a run that goes on from a checkpoint. Losses
            that end at 0 give none once all is learned.
    """

    def __init__(self, *, has_learned: bool = False) -> None:
        self.has_learned = has_learned
        self.num_steps = 0

    def look(self, norm: float, *, step: int) -> None:
        """Take note of the norm at `step`.

        Raises:
            ValueError: the norm isn't finite, or has been 0 since the first of many steps.
        """
        if not math.isfinite(norm):
            raise ValueError(
                f"step {step}: expected a finite gradient, found norm {norm}; the weights are as before this step: "
                "lower learning_rate, or look at the rows of the batch"
            )
        self.has_learned = self.has_learned or norm > 0
        self.num_steps += 1
        if not self.has_learned and self.num_steps == STEPS_WITHOUT_GRADIENT:
            raise ValueError(
                f"step {step}: expected the policy to learn, found no gradient in the first {STEPS_WITHOUT_GRADIENT} "
                "steps; look at the weights of the rows and at what is trainable"
            )
