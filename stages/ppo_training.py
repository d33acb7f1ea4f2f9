"""Stage `ppo_training`: a better policy from prompts and a reward, by PPO.

    dvc repro ppo_training

The policy answers prompts of the training split, a reward model or function scores the answers, and each step raises
the score while it holds the policy near its start. It goes on from its last checkpoint after a kill, to the same
bytes.
"""

import warnings
from pathlib import Path
from typing import Any

from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import tree_digest, write_json, write_text
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Inputs, Output, Scratch, stage_main
from stages.text.serving import Serving
from stages.trainers.ppo.section import PPOTrainingParams


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
    params: PPOTrainingParams,
) -> None:
    """Train the base model on the prompts of the training split.

    Args:
        base_model: `base_model` artifact, the policy's start and its reference.
        completions: `completions` artifact, for the texts of prompts.
        rows: `training_rows` artifact of the prompts.
        reward_models: folders of reward models, whose mean is the reward; none for a reward without one.
        model: folder to write: weights or adapter, value head, tokenizer, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last point of the curves.
        plots: CSV to write: the curves, one row per step, among them `reward` and `kl`.
        scratch: folder of checkpoints.
        params: reward and training.

    Raises:
        ContractError: an artifact is missing or damaged, or the rows are of other completions.
        ValueError: there are no prompts, the reward is unknown or gives no finite numbers, or the gradient isn't.
    """
    from stages.models.generation import Sampling
    from stages.models.pointer import read_pointer
    from stages.models.prompt_room import prompt_room
    from stages.models.tokenizers import load_tokenizer
    from stages.rows.prompts import encode_prompts
    from stages.rows.reading import read_rows
    from stages.text.serving import read_serving
    from stages.trainers.core.as_stage import write_model
    from stages.trainers.core.named_reward import named_reward
    from stages.trainers.core.tracking import tracking_folder
    from stages.trainers.ppo.run import RunSettings, curves_of, run_ppo

    read_pointer(base_model)  # needed when the model is written, which is hours later
    arguments = _config(params, tracking_folder(scratch))
    reward = named_reward(params.reward, reward_models)
    tokenizer = load_tokenizer(base_model)
    found = read_rows(rows, completions, COMPLETIONS, kind="prompts").of_split("train")
    room = prompt_room(base_model, max_new_tokens=params.max_new_tokens)
    prompts, num_too_long = encode_prompts(found.texts(), tokenizer, room=room)
    counts = {"prompts": len(prompts), "prompts_too_long": num_too_long}
    if not prompts:
        raise ValueError(
            f"{rows}: expected prompts of at most {room} tokens in the training split, found none among "
            f"{num_too_long}; lower max_new_tokens, or look at normalization.test_share"
        )
    print(f"training on {counts['prompts']:,} prompts; {counts['prompts_too_long']:,} are too long")

    serving = read_serving(completions, COMPLETIONS)
    trainer = _trainer(base_model, tokenizer, arguments, params, serving)
    sampling = Sampling(
        1, params.max_new_tokens, params.temperature, params.top_p, params.seed, params.sampling_batch_size
    )
    points = run_ppo(
        trainer, prompts, reward, RunSettings(params.num_steps, sampling, params.save_steps), folder=scratch
    )

    # The best policy under the penalty is the reference, tilted by reward / coefficient: that coefficient is beta.
    beta = trainer.kl_ctl.value or 1.0
    facts = {"beta": beta, "reward_shift": 0.0, "rows": tree_digest(rows)}
    write_model(trainer, model, base_model, serving=serving, params=params, learned={"rows": counts}, **facts)
    if not trainer.is_world_process_zero():
        return
    write_text(plots, curves_of(points).to_csv(index=False, lineterminator="\n"))
    ends = {name: points[i] for name, i in (("first", 0), ("last", -1))}
    write_json(metrics, {"method": "ppo", "rows": counts, "steps": len(points), "reward": params.reward, **ends})


def _config(params: PPOTrainingParams, folder: Path) -> Any:
    """The section as PPO's own configuration, which checks it before anything is loaded."""
    from accelerate import PartialState  # type: ignore[import-untyped] # the package ships no types

    from stages.models.devices import default_device
    from stages.trainers.core.fields import config_values
    from stages.trainers.ppo.config import PPOConfig

    is_on_cpu = default_device().type == "cpu"
    number, shared = PartialState(cpu=is_on_cpu).num_processes, {"batch_size", "mini_batch_size"}
    if params.batch_size % number or params.mini_batch_size % number:
        raise ValueError(
            f"expected batch_size and mini_batch_size as multiples of the {number} processes that share them, found "
            f"{params.batch_size} and {params.mini_batch_size}"
        )
    dvclive = {"dir": str(folder / "dvclive"), "save_dvc_exp": False, "dvcyaml": None, "monitor_system": False}
    values = config_values(params, PPOConfig)
    return PPOConfig(
        **{name: value // number if name in shared else value for name, value in values.items()},
        steps=params.num_steps * params.batch_size,
        log_with=params.report_to or None,
        project_kwargs={"project_dir": str(folder), "logging_dir": str(folder)},
        tracker_project_name="tensorboard",
        tracker_kwargs={"dvclive": dvclive} if "dvclive" in params.report_to else {},
        accelerator_kwargs={
            "cpu": is_on_cpu,
            "mixed_precision": "bf16" if params.bf16 else "no",
        },
    )


def _trainer(base_model: Path, tokenizer: Any, config: Any, params: PPOTrainingParams, serving: Serving) -> Any:
    import torch
    from transformers import get_scheduler

    from stages.models.value_head import AutoModelForCausalLMWithValueHead
    from stages.trainers.core.job import adapter_config, start_of
    from stages.trainers.core.seeding import set_seed
    from stages.trainers.ppo.trainer import PPOTrainer

    policy = start_of(base_model, serving, dtype=params.dtype)
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
    with warnings.catch_warnings():
        # The stage makes the batches.
        warnings.filterwarnings("ignore", message="no dataset", category=UserWarning)
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
