"""Stage `iterative_sft_training`: a model that learns the best of its own answers, round by round.

    dvc repro iterative_sft_training

In each round the model answers prompts of the training split several times, a reward scores the answers, and the
best one to each prompt is learned. The curves show the mean reward per round. It goes on from its last whole round
after a kill, to the same bytes.
"""

from typing import Any

from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import tree_digest, write_json, write_text
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Inputs, Output, Scratch, stage_main
from stages.trainers.iterative_sft.section import IterativeSFTTrainingParams

_NOT_OF_THE_CONFIG = frozenset(
    {"reward", "num_rounds", "num_samples", "prompts_per_round", "max_new_tokens", "temperature", "top_p"}
    | {"sampling_batch_size", "num_held_out", "max_steps"}
)


def run(
    *,
    base_model: Input,
    completions: Input,
    rows: Input,
    reward_models: Inputs = (),
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: IterativeSFTTrainingParams,
) -> None:
    """Take the base model through the rounds.

    Args:
        base_model: `base_model` artifact, the start.
        completions: `completions` artifact, for the texts of prompts.
        rows: `training_rows` artifact of the prompts.
        reward_models: folders of reward models, whose mean is the reward; none for a reward without one.
        model: folder to write: weights or adapter, tokenizer, model card, lineage.
        metrics: JSON to write: the first and the last point of the curves.
        plots: CSV to write: the curves, a row per round.
        scratch: folder of checkpoints and of what the rounds sampled.
        params: reward, rounds, sampling and training.

    Raises:
        ContractError: an artifact is missing or damaged, or the rows are of other completions.
        ValueError: there are no prompts or none leaves room for an answer, the reward is unknown or gives no finite
            numbers, or a loss isn't finite.
    """
    import pandas as pd

    from stages.models.held_out import choose_prompts
    from stages.models.pointer import read_pointer
    from stages.models.prompt_room import prompt_room
    from stages.models.tokenizers import load_tokenizer
    from stages.rows.prompts import encode_prompts
    from stages.rows.reading import read_rows
    from stages.text.serving import read_serving
    from stages.trainers.core.as_stage import write_model
    from stages.trainers.core.job import adapter_config, config_arguments, start_of
    from stages.trainers.core.named_reward import named_reward
    from stages.trainers.core.policy import prepare_policy
    from stages.trainers.core.tracking import tracker_callbacks, tracking_folder
    from stages.trainers.iterative_sft.run import COLUMNS, IterativeRun, Rounds
    from stages.trainers.iterative_sft.trainer import IterativeSFTTrainer
    from stages.trainers.sft.trainer import SFTConfig

    read_pointer(base_model)  # needed when the model is written, which is hours later
    reward = named_reward(params.reward, reward_models)
    tokenizer = load_tokenizer(base_model)
    found = read_rows(rows, completions, COMPLETIONS, kind="prompts")
    room = prompt_room(base_model, max_new_tokens=params.max_new_tokens)
    prompts, num_too_long = encode_prompts(found.of_split("train").texts(), tokenizer, room=room)
    held_out_rows = choose_prompts(found.of_split("test").texts(), num_prompts=params.num_held_out, seed=params.seed)
    held_out, num_held_out_too_long = encode_prompts(held_out_rows, tokenizer, room=room)
    counts = {"train": len(prompts), "held_out": len(held_out), "too_long": num_too_long + num_held_out_too_long}
    if not prompts:
        raise ValueError(
            f"{rows}: expected prompts of at most {room} tokens to learn from, found none ({counts}); lower "
            "max_new_tokens, or look at normalization.test_share"
        )
    print(f"prompts: {', '.join(f'{count:,} {name}' for name, count in counts.items()).replace('_', ' ')}")
    serving = read_serving(completions, COMPLETIONS)
    policy: Any = start_of(base_model, serving, dtype=params.dtype)
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
    arguments["max_steps"] = rounds.max_steps(len(prompts), rows_per_step=rows_per_step)
    args = SFTConfig(str(scratch), **arguments)
    adapter = adapter_config(params.lora, task_type="CAUSAL_LM")
    trainer = IterativeSFTTrainer(prepare_policy(policy, peft_config=adapter, args=args), args, tokenizer)
    for callback in tracker_callbacks(params.report_to, tracking_folder(scratch)):
        trainer.add_callback(callback)
    points = IterativeRun(
        trainer,
        prompts=prompts,
        held_out=held_out,
        reward=lambda asked, answers, ended: reward(
            [prompt.text(reward.prompts_as) for prompt in asked], answers, [prompt.row for prompt in asked], ended
        ),
        rounds=rounds,
    ).run()

    facts = {"beta": 1.0, "reward_shift": 0.0, "rows": tree_digest(rows)}
    write_model(trainer, model, base_model, serving=serving, params=params, learned={"rows": counts}, **facts)
    columns = [name for name in COLUMNS if any(name in point for point in points)]
    curves = pd.DataFrame(points, columns=columns).astype({"round": int, "step": int})
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    ends = {name: curves.iloc[place].dropna().to_dict() for name, place in (("first", 0), ("last", -1))}
    steps = int(curves["step"].iloc[-1])
    write_json(metrics, {"method": trainer.method, "rows": counts, "steps": steps, **ends})


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
