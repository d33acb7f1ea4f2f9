"""The loop of PPO: sample responses to the next prompts, score them, take a step, again and again.

What is sampled in a step follows from the weights, the seed and the number of the step alone. So a run that goes on
from a checkpoint ends with the same weights, to the last bit, as one that was never stopped.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from stages.contracts.stopping import leave, stopping_between_steps
from stages.models.generation import Sampling, have_ended, sample_ids
from stages.rows.prompts import Prompt
from stages.trainers.core.named_reward import Reward
from stages.trainers.core.processes import is_asked_to_stop
from stages.trainers.core.seeding import row_order
from stages.trainers.ppo.state import STEP_CHECKPOINTS
from stages.trainers.ppo.trainer import PPOTrainer

logger = logging.getLogger(__name__)

Point = dict[str, float]

_CURVES = {
    "kl": "objective/kl",
    "kl_coef": "objective/kl_coef",
    "entropy": "ppo/policy/entropy",
    "approx_kl": "ppo/policy/approxkl",
    "policy_clip_share": "ppo/policy/clipfrac",
    "policy_loss": "ppo/loss/policy",
    "value_loss": "ppo/loss/value",
    "value_explained": "ppo/val/var_explained",
    "response_length": "tokens/responses_len_mean",
    "learning_rate": "ppo/learning_rate",
}
"""Columns of the curves and the statistics that they hold."""


class RunSettings(NamedTuple):
    """How long a run is, and how it samples."""

    num_steps: int
    """Steps of PPO."""
    sampling: Sampling
    """How responses are drawn; one of each prompt, whatever `num_samples` says."""
    save_steps: int = 0
    """Steps between two checkpoints; 0 writes none."""


def run_ppo(
    trainer: PPOTrainer, prompts: Sequence[Prompt], reward: Reward, settings: RunSettings, *, folder: Path | None = None
) -> list[Point]:
    """Train for so many steps, going on from the last checkpoint in `folder`.

    Args:
        trainer: of a causal language model, as new.
        prompts: what is answered, in an order that the seed of the sampling and the number of the pass decide.
        reward: scores the responses.
        settings: steps, sampling and checkpoints.
        folder: where checkpoints stand; None writes none.

    Returns:
        One point per step: mean reward of the responses and its standard deviation, their distance from the
        reference (`kl`, in nats per response), and what else shows how the step went.

    Raises:
        ValueError: the model is an encoder-decoder, or a reward isn't finite.
    """
    if trainer.config.is_encoder_decoder:
        raise ValueError("expected a causal language model, found an encoder-decoder; call generate and step yourself")
    points: list[Point] = []
    checkpoint = None if folder is None else STEP_CHECKPOINTS.last_whole(folder)
    if checkpoint is not None:
        points = trainer.load_state(checkpoint)["points"]
        logger.info("going on from %s", checkpoint.name)
    with (
        tqdm(
            total=settings.num_steps, initial=len(points), desc="ppo", unit="step", disable=not _is_main(trainer)
        ) as bar,
        nullcontext() if folder is None else stopping_between_steps(),
    ):
        while len(points) < settings.num_steps:
            points.append(_one_step(trainer, prompts, reward, settings.sampling))
            bar.set_postfix(reward=f"{points[-1]['reward']:.3f}", kl=f"{points[-1]['kl']:.2f}", refresh=False)
            bar.update()
            is_leaving = folder is not None and is_asked_to_stop(trainer.accelerator)
            is_due = settings.save_steps > 0 and len(points) % settings.save_steps == 0
            if folder is not None and (is_due or is_leaving):
                _save(trainer, folder, points)
            if is_leaving:
                leave(f"step {len(points)}")
    trainer.accelerator.end_training()
    return points


def _is_main(trainer: PPOTrainer) -> bool:
    return bool(trainer.accelerator.is_local_main_process)


def _one_step(trainer: PPOTrainer, prompts: Sequence[Prompt], reward: Reward, sampling: Sampling) -> Point:
    number = trainer.current_step
    accelerator = trainer.accelerator
    own = prompts_of_step(
        prompts,
        step=number,
        batch_size=trainer.config.batch_size,
        seed=sampling.seed,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    batch, turns = [prompt for prompt, _ in own], [turn for _, turn in own]
    responses = sample_responses(trainer, batch, sampling, step=number, turns=turns)
    texts = trainer.tokenizer.batch_decode(responses, skip_special_tokens=True)
    questions = [prompt.text(reward.prompts_as) for prompt in batch]
    rows = [prompt.row for prompt in batch]
    policy = cast(PreTrainedModel, accelerator.unwrap_model(trainer.model))
    rewards = reward(questions, texts, rows, have_ended(responses, policy, trainer.tokenizer))
    stats = trainer.step(
        [torch.tensor(prompt.input_ids) for prompt in batch],
        [torch.tensor(ids) for ids in responses],
        [torch.tensor(value) for value in rewards],
    )
    trainer.log_stats(stats, {"query": questions, "response": texts}, rewards)
    found = accelerator.gather(torch.tensor(rewards, device=accelerator.device, dtype=torch.float32))
    return {
        "step": float(number + 1),
        "reward": found.mean().item(),
        "reward_std": found.std().item() if len(found) > 1 else 0.0,
        **{name: float(stats[statistic]) for name, statistic in _CURVES.items()},
    }


def prompts_of_step(
    prompts: Sequence[Prompt], *, step: int, batch_size: int, seed: int, process: int, num_processes: int
) -> list[tuple[Prompt, int]]:
    """What a process answers in a step: each prompt with how often it stands before, in the step of all processes.

    Args:
        prompts: of the run.
        step: number of the step.
        batch_size: prompts of a process in a step.
        seed: of the order of the prompts.
        process: number of the process.
        num_processes: how many share the step.
    """
    width = batch_size * num_processes
    places = _places(len(prompts), start=step * width, number=width, seed=seed)
    batch = [prompts[place] for place in places]
    return list(zip(batch, _turns(batch), strict=True))[process::num_processes]


def _places(num_prompts: int, *, start: int, number: int, seed: int) -> list[int]:
    """Places `start` and following of the prompts' orders, pass behind pass."""
    found: list[int] = []
    classes = np.zeros(num_prompts, dtype=bool)
    epoch, first = divmod(start, num_prompts)
    while len(found) < number:
        order = row_order(classes, seed=seed, epoch=epoch)
        found += order[first : first + number - len(found)]
        epoch, first = epoch + 1, 0
    return found


def sample_responses(
    trainer: PPOTrainer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    step: int,
    turns: Sequence[int] | None = None,
) -> list[list[int]]:
    """Ids of a response to each prompt; a prompt that stands there twice gets two.

    Args:
        trainer: whose policy answers.
        prompts: what is answered.
        sampling: how responses are drawn.
        step: another one gives other responses.
        turns: another one gives a prompt another response. None counts how often it stands before in `prompts`.
    """
    turns = _turns(prompts) if turns is None else turns
    responses: list[list[int]] = [[]] * len(prompts)
    policy = cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
    for turn in sorted(set(turns)):
        places = [place for place, its_turn in enumerate(turns) if its_turn == turn]
        seed = int(np.random.SeedSequence([sampling.seed, step, turn]).generate_state(1)[0])
        with trainer.accelerator.autocast():
            found = sample_ids(
                policy,
                trainer.tokenizer,
                [prompts[place].input_ids for place in places],
                sampling=sampling._replace(num_samples=1, seed=seed),
            )
        for place, (ids,) in zip(places, found, strict=True):
            responses[place] = ids
    return responses


def _turns(prompts: Sequence[Prompt]) -> list[int]:
    """How often each prompt stands before itself."""
    seen: Counter[tuple[int, ...]] = Counter()
    turns = []
    for prompt in prompts:
        key = tuple(prompt.input_ids)
        turns.append(seen[key])
        seen[key] += 1
    return turns


def _save(trainer: PPOTrainer, folder: Path, points: list[Point]) -> None:
    checkpoint = STEP_CHECKPOINTS.path(folder, len(points))
    trainer.save_state(checkpoint, extra={"points": points})
    STEP_CHECKPOINTS.keep_last(trainer.accelerator, checkpoint, limit=1)


def curves_of(points: Sequence[Point]) -> Any:
    """The points as a table, one row per step."""
    # The table is for files alone, and what trains has no use for it.
    import pandas as pd

    columns = ["step", "reward", "reward_std", *_CURVES]
    return pd.DataFrame(points)[columns].astype({"step": int})
