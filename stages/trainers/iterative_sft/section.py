"""Section `training.iterative_sft` of params.yaml; light to import, as graphs are read with it."""

from typing import Literal

from pydantic import Field

from stages.trainers.core.sections import OptimisationParams


class IterativeSFTTrainingParams(OptimisationParams):
    """Section `training.iterative_sft` of params.yaml."""

    reward: str = "model"
    """Who scores answers: `model`, a reward model; `demo`, the true reward of the demo's world; or
    `package.module:function`, a Python function of prompts (what users wrote) and completions. DVC doesn't watch the
    file of your own function."""
    num_rounds: int = Field(3, gt=0)
    """Rounds of sampling and learning."""
    num_samples: int = Field(4, gt=1)
    """Answers to each prompt, of which the best is learned."""
    prompts_per_round: int | None = Field(None, gt=0)
    """Prompts of a round, drawn anew for each; null takes all."""
    num_train_epochs: int = Field(1, gt=0)
    """Passes over the best answers of a round."""
    max_steps: Literal[-1] = -1
    """The rounds say how many steps there are."""
    save_steps: Literal[0] = 0
    """A round is saved as a whole, and nothing within it."""
    max_new_tokens: int = Field(128, gt=0)
    """Length of an answer in tokens, at most."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from."""
    sampling_batch_size: int = Field(64, gt=0)
    """Answers sampled at once."""
    num_held_out: int = Field(64, ge=0)
    """Held-out prompts by whose answers the rounds are compared; 0 compares none."""
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate after warm-up."""
