"""Stage `iterative_training`: a model that learns the best of its own answers, round by round.

    python -m stages.iterative_sft_training --params training.iterative_sft --base-model models/base ...

In each round the model answers prompts of the training split several times, a reward scores the answers, and the
best one to each prompt is learned. The curves show the mean reward per round. It goes on from its last whole round
after a kill, to the same bytes.
"""

from typing import Any, Literal

from pydantic import Field

from stages.contracts.files import write_json, write_text
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, stage_main
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


_NOT_OF_THE_CONFIG = frozenset(
    {"reward", "num_rounds", "num_samples", "prompts_per_round", "max_new_tokens", "temperature", "top_p"}
    | {"sampling_batch_size", "num_held_out", "max_steps"}
)


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
    params: IterativeSFTTrainingParams,
) -> None:
    """Take the base model through the rounds.

    Args:
        base_model: `base_model` artifact, the start.
        completions: `completions` artifact, for its prompts.
        reward_model: folder of a reward model; None for a reward without one.
        truth: what the demo's reward reads; None for another.
        model: folder to write: weights or adapter, tokenizer, model card, lineage.
        metrics: JSON to write: the first and the last point of the curves.
        plots: CSV to write: the curves, a row per round.
        scratch: folder of checkpoints and of what the rounds sampled.
        params: reward, rounds, sampling and training.

    Raises:
        ContractError: `completions` is missing or damaged.
        ValueError: there are no prompts or none leaves room for an answer, the reward is unknown or gives no finite
            numbers, or a loss isn't finite.
    """
    import pandas as pd

    from stages.models.loading import load_causal_lm
    from stages.models.pointer import read_pointer
    from stages.models.prompt_room import prompt_room
    from stages.models.tokenizers import load_tokenizer
    from stages.trainers.core.as_stage import adapter_config, config_arguments, write_model
    from stages.trainers.core.policy import prepare_policy
    from stages.trainers.core.tracking import tracker_callbacks, tracking_folder
    from stages.trainers.iterative_sft.prompts import named_reward, read_prompts
    from stages.trainers.iterative_sft.run import COLUMNS, IterativeRun, Rounds
    from stages.trainers.iterative_sft.trainer import IterativeSFTTrainer
    from stages.trainers.sft.trainer import SFTConfig

    read_pointer(base_model)  # needed when the model is written, which is hours later
    reward = named_reward(params.reward, reward_model=reward_model, truth=truth)
    tokenizer = load_tokenizer(base_model)
    prompts = read_prompts(
        completions,
        tokenizer,
        max_prompt_length=prompt_room(base_model, max_new_tokens=params.max_new_tokens),
        num_held_out=params.num_held_out,
        seed=params.seed,
        prompts_as=reward.prompts_as,
    )
    print(f"prompts: {', '.join(f'{count:,} {name}' for name, count in prompts.counts.items()).replace('_', ' ')}")
    policy: Any = load_causal_lm(base_model, dtype=params.dtype)
    rounds = Rounds(
        params.num_rounds,
        params.num_samples,
        params.max_new_tokens,
        params.prompts_per_round,
        params.num_train_epochs,
        params.temperature,
        params.top_p,
        params.sampling_batch_size,
        params.seed,
    )
    arguments = config_arguments(params, without=_NOT_OF_THE_CONFIG)
    rows_per_step = params.per_device_train_batch_size * params.gradient_accumulation_steps
    arguments["max_steps"] = rounds.max_steps(len(prompts.train), rows_per_step=rows_per_step)
    args = SFTConfig(str(scratch), **arguments)
    adapter = adapter_config(params.lora, task_type="CAUSAL_LM")
    trainer = IterativeSFTTrainer(prepare_policy(policy, peft_config=adapter, args=args), args, tokenizer)
    for callback in tracker_callbacks(params.report_to, tracking_folder(scratch)):
        trainer.add_callback(callback)
    points = IterativeRun(
        trainer,
        prompts=prompts.train,
        held_out=prompts.held_out,
        reward=lambda asked, answers, ended: reward([p.text for p in asked], answers, [p.row for p in asked], ended),
        rounds=rounds,
    ).run()

    write_model(trainer, model, base_model, beta=1.0, reward_shift=0.0)
    columns = [name for name in COLUMNS if any(name in point for point in points)]
    curves = pd.DataFrame(points, columns=columns).astype({"round": int, "step": int})
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    ends = {name: curves.iloc[place].dropna().to_dict() for name, place in (("first", 0), ("last", -1))}
    steps = int(curves["step"].iloc[-1])
    write_json(metrics, {"method": trainer.method, "rows": prompts.counts, "steps": steps, **ends})


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
