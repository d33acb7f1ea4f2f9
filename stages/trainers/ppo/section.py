"""Section `training.ppo` of params.yaml; light to import, as graphs are read with it."""

from typing import Any, Literal

from pydantic import Field

from stages.trainers.core.fields import section_fields
from stages.trainers.core.sections import LanguageModelParams
from stages.trainers.ppo.config import PPOConfig

_OF_THE_CONFIG: Any = section_fields(
    LanguageModelParams,
    PPOConfig,
    "gradient_accumulation_steps ppo_epochs learning_rate kl_penalty init_kl_coef adap_kl_ctrl target horizon "
    "gamma lam cliprange cliprange_value vf_coef early_stopping target_kl ratio_threshold use_score_scaling "
    "use_score_norm score_clip whiten_rewards",
    max_grad_norm=1.0,
)


class PPOTrainingParams(_OF_THE_CONFIG):  # type: ignore[misc] # its fields are made above
    """Section `training.ppo` of params.yaml."""

    reward: str = "model"
    """Who scores answers: `model`, a reward model; `demo`, the true reward of the demo's world; or
    `package.module:function`, a Python function of (prompt, completion) or (prompt, completion, row). DVC doesn't
    watch the file of your own function."""
    num_steps: int = Field(100, gt=0)
    """Steps of PPO."""
    batch_size: int = Field(64, gt=0)
    """Answers of a step; of all processes, if several share the training."""
    mini_batch_size: int = Field(16, gt=0)
    """Answers in the model at once; likewise."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant"
    """How the learning rate falls over the steps."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of warm-up."""
    num_shared_layers: int | None = Field(None, ge=0)
    """Layers that are frozen and shared with the reference; null shares none."""
    max_new_tokens: int = Field(128, gt=0)
    """Length of an answer in tokens, at most."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling; only at 1 are answers those of the policy itself."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from; as for the temperature."""
    sampling_batch_size: int = Field(64, gt=0)
    """Answers sampled at once."""
    seed: int = 0
    """Seed of the order of prompts, of sampling and of the value head."""
    save_steps: int = Field(20, ge=0)
    """Steps between two checkpoints, from which a killed run goes on; 0 writes none."""
