"""Section `training.ppo` of params.yaml; light to import, as graphs are read with it."""

from typing import Literal

from pydantic import Field

from stages.trainers.core.sections import LoraParams, TrainingSection


class PPOTrainingParams(TrainingSection):
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
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Mini-batches of an optimizer step."""
    ppo_epochs: int = Field(4, gt=0)
    """Passes over the answers of a step."""
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of Adam after warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant"
    """How the learning rate falls over the steps."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of warm-up."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Norm that gradients are clipped to; null clips none."""
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    """How the distance from the base model is measured."""
    init_kl_coef: float = Field(0.2, ge=0)
    """Coefficient of the penalty on it at the start."""
    adap_kl_ctrl: bool = True
    """Whether the coefficient follows the distance."""
    target: float = Field(6.0, gt=0)
    """Distance that it is steered to, in nats per answer."""
    horizon: float = Field(10000, gt=0)
    """Answers over which it is steered."""
    gamma: float = Field(1.0, ge=0, le=1)
    """What a reward counts one token earlier."""
    lam: float = Field(0.95, ge=0, le=1)
    """Weight of far-sighted advantages."""
    cliprange: float = Field(0.2, gt=0)
    """How far a token's ratio of probabilities may go from 1 before it stops counting."""
    cliprange_value: float = Field(0.2, gt=0)
    """How far a value may go from the one before the step."""
    vf_coef: float = Field(0.1, ge=0)
    """What the loss of the value head is multiplied by."""
    early_stopping: bool = False
    """Whether a step ends before the policy goes further than 1.5 times `target_kl` from where it sampled."""
    target_kl: float = Field(1.0, gt=0)
    """That distance, in nats per token."""
    ratio_threshold: float = Field(10.0, gt=0)
    """Mean ratio of probabilities above which a mini-batch is left out."""
    use_score_scaling: bool = False
    """Whether scores are divided by the standard deviation of all so far."""
    use_score_norm: bool = False
    """Whether their mean is taken off first."""
    score_clip: float | None = Field(None, gt=0)
    """Bound of the scores' magnitude; null sets none."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to variance 1 before advantages are computed."""
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are held in."""
    bf16: bool = False
    """Whether to compute in bfloat16."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and costs time."""
    lora: LoraParams | None = None
    """The adapter to train; null trains the whole model."""
    save_steps: int = Field(20, ge=0)
    """Steps between two checkpoints, from which a killed run goes on; 0 writes none."""
    report_to: list[Literal["tensorboard", "dvclive"]] = Field(default_factory=list)
    """Trackers that follow the run, below .cache/tracking; they change no output."""
