"""A reference that follows the policy: TR-DPO, Gorbatovski et al. 2024, https://arxiv.org/abs/2404.09656."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from stages.models.adapters import is_peft_model
from stages.models.frozen import FrozenReference, SeparateModel

_FILE = "reference.safetensors"


class MovingReference(TrainerCallback):
    """Mixes the policy into the reference every so many optimizer steps, and keeps the reference in checkpoints.

    Args:
        reference: the reference of the trainer.
        policy: gives the model that is trained.
        share: of the policy in the mixture; alpha in the paper.
        steps: optimizer steps between two mixtures; tau in the paper.

    Raises:
        ValueError: the reference isn't a model of its own, or not of the policy's kind.
    """

    def __init__(
        self, reference: FrozenReference | None, policy: Callable[[], Any], *, share: float, steps: int
    ) -> None:
        if not isinstance(reference, SeparateModel) or is_peft_model(policy()):
            raise ValueError(
                "expected a reference that is a whole model, and a policy that is trained as a whole, for "
                "sync_ref_model, found an adapter or no reference; train without one, or leave sync_ref_model out"
            )
        self.reference, self.policy, self.share, self.steps = reference.model, policy, share, steps
        ours, theirs = ({name: w.shape for name, w in model.named_parameters()} for model in (policy(), self.reference))
        if ours != theirs:
            raise ValueError(
                "expected ref_model with weights of the policy's names and shapes for sync_ref_model, found another "
                "model; give one of the same kind"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - of transformers
        """Mix, if it is time to: share * policy + (1 - share) * reference."""
        if state.global_step % self.steps == 0:
            mix(self.reference, self.policy(), share=self.share)

    def save(self, folder: Path) -> None:
        """Write the reference into a checkpoint."""
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.reference.named_parameters()}
        save_file(weights, folder / _FILE)

    def restore(self, folder: Path) -> None:
        """Take up the reference of a checkpoint.

        Raises:
            ValueError: there is none.
        """
        if not (folder / _FILE).is_file():
            raise ValueError(
                f"{folder / _FILE}: expected the reference as it was, found none; resume from a checkpoint of a run "
                "with sync_ref_model"
            )
        found = load_file(folder / _FILE)
        for name, weight in self.reference.named_parameters():
            weight.data.copy_(found[name])


@torch.no_grad()
def mix(reference: nn.Module, policy: nn.Module, *, share: float) -> None:
    """Make the reference share * policy + (1 - share) * reference, weight by weight."""
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        theirs.mul_(1 - share).add_(ours.to(theirs), alpha=share)
