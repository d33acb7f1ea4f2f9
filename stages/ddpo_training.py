"""Stage `ddpo_training`: a Stable Diffusion pipeline whose images a function rewards more, by DDPO.

    dvc repro ddpo_training

It goes on from its last checkpoint after a kill, to the same bytes.
"""

from pathlib import Path
from typing import Any

from stages.contracts.files import tree_digest, write_json, write_text
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.launch import unlaunched
from stages.contracts.stage import Input, Output, Scratch, stage_main
from stages.contracts.stopping import stopping_between_steps
from stages.trainers.ddpo.section import DiffusionTrainingParams


def run(
    *,
    base_model: Input,
    image_prompts: Input,
    rows: Input,
    model: Output,
    metrics: Output,
    plots: Output,
    scratch: Scratch,
    params: DiffusionTrainingParams,
) -> None:
    """Train on prompts drawn from the training side.

    Args:
        base_model: `base_diffusion` artifact, where training starts.
        image_prompts: `image_prompts` artifact.
        rows: `training_rows` artifact of those prompts.
        model: folder to write: adapter or pipeline, in the layout of diffusers, model card, lineage.
        metrics: JSON to write: what was trained on, and the first and last rewards.
        plots: CSV to write: the curves.
        scratch: folder of checkpoints.
        params: reward, and how to train.

    Raises:
        ContractError: an artifact is missing or damaged, or the rows are of other prompts.
        ValueError: the reward leads to no function or isn't finite, batches don't divide, or a package is missing.
    """
    import random

    from stages.models.image_rewards import named_image_reward
    from stages.rows.reading import read_rows
    from stages.trainers.ddpo.config import DDPOConfig

    reward = named_image_reward(params.reward)
    config = DDPOConfig(**_arguments(params, scratch))
    found = read_rows(rows, image_prompts, IMAGE_PROMPTS, kind="image_prompts")
    prompts = found.of_split("train").texts()["prompt"].to_pylist()

    from stages.models.diffusion import DefaultDDPOStableDiffusionPipeline, attention_adapter
    from stages.models.diffusion_pointer import pipeline_folder, write_diffusion_lineage
    from stages.trainers.ddpo.trainer import DDPOTrainer

    adapter = None if params.lora is None else attention_adapter(r=params.lora.r, alpha=params.lora.alpha)
    pipeline = DefaultDDPOStableDiffusionPipeline(
        pipeline_folder(base_model), use_lora=adapter is not None, lora_config=adapter
    )
    # Drawn from the global generator, whose state checkpoints hold.
    trainer = DDPOTrainer(config, reward, lambda: (random.choice(prompts), {}), pipeline)  # noqa: S311 - no secret
    if trainer.first_epoch:
        print(f"going on from epoch {trainer.first_epoch}")
    with stopping_between_steps():
        trainer.train()

    trainer.save_pretrained(model)
    write_diffusion_lineage(model, base_model, method=trainer.method, reward=params.reward, rows=tree_digest(rows))
    curves = _curves(trainer.history)
    write_text(plots, curves.to_csv(index=False, lineterminator="\n"))
    means = curves["reward_mean"].dropna()
    facts = {
        "method": trainer.method,
        "reward_function": params.reward,
        "prompts": found.counts["train"],
        "images": params.num_epochs * params.sample_batch_size * params.sample_num_batches_per_epoch,
        "epochs": params.num_epochs,
        "steps": trainer.global_step,
        "reward": {"first": means.iloc[0], "last": means.iloc[-1]},
    }
    write_json(metrics, facts)
    print(f"mean reward {means.iloc[0]:.4f} in the first epoch, {means.iloc[-1]:.4f} in the last of {len(means)}")


def _arguments(params: DiffusionTrainingParams, scratch: Path) -> dict[str, Any]:
    """The section as arguments of the config."""
    from stages.models.devices import default_device
    from stages.trainers.core.fields import config_values
    from stages.trainers.core.tracking import tracking_folder
    from stages.trainers.ddpo.config import DDPOConfig
    from stages.trainers.ddpo.setup import EPOCH_CHECKPOINTS

    has_checkpoint = EPOCH_CHECKPOINTS.last_whole(scratch / "checkpoints") is not None
    return {
        **config_values(params, DDPOConfig),
        "resume_from": str(scratch) if has_checkpoint else "",
        "num_checkpoint_limit": 2,
        "project_kwargs": {"project_dir": str(scratch)},
        "logdir": str(tracking_folder(scratch)),
        "tracker_project_name": "ddpo",
        "accelerator_kwargs": {"cpu": default_device().type == "cpu"},
    }


def _curves(history: list[dict[str, Any]]) -> Any:
    """Lines of the log as a table; what a line doesn't have stays empty."""
    import pandas as pd

    columns = ["step", "epoch", "inner_epoch", "reward_mean", "reward_std", "loss", "approx_kl", "clipfrac"]
    return pd.DataFrame(history, columns=columns).astype({"inner_epoch": "Int64"})


if __name__ == "__main__":
    stage_main(run, launcher=unlaunched)
