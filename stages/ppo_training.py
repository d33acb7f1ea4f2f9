"""Stage `ppo_training`: a better policy from prompts and a reward, by PPO.

    python -m stages.ppo_training --params training.ppo --base-model models/base --completions artifacts/completions ...

The policy answers prompts of the training split, a reward model or function scores the answers, and each step raises
the score while it holds the policy near its start. It goes on from its last checkpoint after a kill, to the same
bytes.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.contracts.files import write_json, write_text
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, Section, stage_main
from stages.trainers.core.sections import LoraParams


class PPOTrainingParams(Section):
    """Section `training.ppo` of params.yaml."""

    start_from: str = "base"
    """Model that training starts from and is held near to: `base`, or the method that trained it, such as `sft`."""
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


def run(
    *,
    base_model: Input,
    completions: Input,
    reward_model: Input | None = None,
    truth: Input | None = None,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: PPOTrainingParams,
) -> None:
    """Train the base model on the prompts of the training split.

    Args:
        base_model: `base_model` artifact, the policy's start and its reference.
        completions: `completions` artifact, for its prompts.
        reward_model: folder of a reward model; None for a reward without one.
        truth: what the demo's reward reads; None for another.
        model: folder to write: weights or adapter, value head, tokenizer, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last point of the curves.
        plots: CSV to write: the curves, one row per step, among them `reward` and `kl`.
        scratch: folder of checkpoints.
        params: reward and training.

    Raises:
        ContractError: `completions` is missing or damaged.
        ValueError: there are no prompts, the reward is unknown or gives no finite numbers, or the gradient isn't.
    """
    from stages.models.generation import Sampling
    from stages.models.pointer import read_reference
    from stages.models.prompt_room import prompt_room
    from stages.models.tokenizers import load_tokenizer
    from stages.trainers.core.as_stage import write_model
    from stages.trainers.core.named_reward import load_reward
    from stages.trainers.core.tracking import tracking_folder
    from stages.trainers.ppo.prompts import read_prompts
    from stages.trainers.ppo.run import RunSettings, curves_of, run_ppo

    read_reference(base_model)  # needed when the model is written, which is hours later
    arguments = _config(params, tracking_folder(scratch))
    named = reward_model if params.reward == "model" else params.reward
    if named is None:
        raise ValueError(
            "training.ppo.reward: expected a reward model for reward model, found none; name another reward"
        )
    reward = load_reward(named, truth=truth)
    tokenizer = load_tokenizer(base_model)
    prompts, counts = read_prompts(
        completions, tokenizer, room=prompt_room(base_model, max_new_tokens=params.max_new_tokens)
    )
    print(f"training on {counts['prompts']:,} prompts; {counts['prompts_too_long']:,} are too long")

    trainer = _trainer(base_model, tokenizer, arguments, params)
    sampling = Sampling(
        1, params.max_new_tokens, params.temperature, params.top_p, params.seed, params.sampling_batch_size
    )
    points = run_ppo(
        trainer, prompts, reward, RunSettings(params.num_steps, sampling, params.save_steps), folder=scratch
    )

    # The best policy under the penalty is the reference, tilted by reward / coefficient: that coefficient is beta.
    beta = trainer.kl_ctl.value or 1.0
    write_model(trainer, model, base_model, beta=beta, reward_shift=0.0)
    if not trainer.is_world_process_zero():
        return
    write_text(plots, curves_of(points).to_csv(index=False, lineterminator="\n"))
    ends = {name: points[i] for name, i in (("first", 0), ("last", -1))}
    write_json(metrics, {"method": "ppo", "rows": counts, "steps": len(points), "reward": params.reward, **ends})


_NOT_OF_THE_CONFIG = {
    *(
        "start_from",
        "reward",
        "num_steps",
        "batch_size",
        "mini_batch_size",
        "lr_scheduler_type",
        "warmup_steps",
        "num_shared_layers",
        "max_new_tokens",
        "temperature",
    ),
    *("top_p", "sampling_batch_size", "dtype", "bf16", "gradient_checkpointing", "lora", "save_steps", "report_to"),
}


def _config(params: PPOTrainingParams, folder: Path) -> Any:
    """The section as PPO's own configuration, which checks it before anything is loaded."""
    from accelerate import PartialState  # type: ignore[import-untyped] # the package ships no types

    from stages.models.devices import default_device
    from stages.trainers.ppo.config import PPOConfig

    is_on_cpu = default_device().type == "cpu"
    number = PartialState(cpu=is_on_cpu).num_processes
    if params.batch_size % number or params.mini_batch_size % number:
        raise ValueError(
            f"expected batch_size and mini_batch_size as multiples of the {number} processes that share them, found "
            f"{params.batch_size} and {params.mini_batch_size}"
        )
    dvclive = {"dir": str(folder / "dvclive"), "save_dvc_exp": False, "dvcyaml": None, "monitor_system": False}
    return PPOConfig(
        **params.model_dump(exclude=_NOT_OF_THE_CONFIG),
        batch_size=params.batch_size // number,
        mini_batch_size=params.mini_batch_size // number,
        steps=params.num_steps * params.batch_size,
        log_with=params.report_to or None,  # type: ignore[arg-type] # a list is taken as well
        project_kwargs={"project_dir": str(folder), "logging_dir": str(folder)},
        tracker_project_name="tensorboard",
        tracker_kwargs={"dvclive": dvclive} if "dvclive" in params.report_to else {},
        accelerator_kwargs={
            "cpu": is_on_cpu,
            "mixed_precision": "bf16" if params.bf16 else "no",
        },
    )


def _trainer(base_model: Path, tokenizer: Any, config: Any, params: PPOTrainingParams) -> Any:
    import torch
    from transformers import get_scheduler

    from stages.models.loading import load_causal_lm
    from stages.models.value_head import AutoModelForCausalLMWithValueHead
    from stages.trainers.core.as_stage import adapter_config
    from stages.trainers.core.seeding import set_seed
    from stages.trainers.ppo.trainer import PPOTrainer

    policy = load_causal_lm(base_model, dtype=params.dtype)
    set_seed(params.seed)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        policy, peft_config=adapter_config(params.lora, task_type="CAUSAL_LM")
    )
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.Adam(model.parameters(), lr=params.learning_rate)
    schedule = get_scheduler(
        params.lr_scheduler_type,
        optimizer,
        num_warmup_steps=params.warmup_steps,
        num_training_steps=params.num_steps,
    )
    return PPOTrainer(
        config,
        model,
        None,
        tokenizer,
        optimizer=optimizer,
        num_shared_layers=params.num_shared_layers,
        lr_scheduler=schedule,
    )


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
