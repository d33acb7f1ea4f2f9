"""Rounds of best of n: sample answers, keep the one with the highest reward to each prompt, and learn it.

A round follows from the weights that it begins with, its number and the settings. So a run that was killed goes on
from the checkpoint behind its last whole round, and what a round has sampled and scored is kept beside the checkpoints
until the run is over.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import SaveStrategy

from stages.contracts.files import kept, write_json
from stages.contracts.rows import content_id
from stages.contracts.stopping import leave, stopping_between_steps
from stages.losses.sft import IGNORED
from stages.models.generation import Sampling, have_ended, sample_ids
from stages.rows.prompts import Prompt
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS
from stages.trainers.core.processes import is_asked_to_stop
from stages.trainers.iterative_sft.trainer import IterativeSFTTrainer

logger = logging.getLogger(__name__)

Point = dict[str, float]
COLUMNS = ("round", "step", "held_out_reward", "reward", "best_reward", "length", "finished", "loss", "prompts")
"""What a point may hold, in the order in which to show it."""


Reward = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Sequence[float]]
"""Takes prompts, one answer to each and whether it ended by itself, gives a number for each; higher is better."""


class Rounds(NamedTuple):
    """How a run goes."""

    num_rounds: int
    """Rounds of sampling and learning."""
    num_samples: int
    """Answers to each prompt, of which the best is learned."""
    max_new_tokens: int
    """Length of an answer in tokens, at most."""
    prompts_per_round: int | None = None
    """Prompts of a round, drawn anew for each. None takes all."""
    epochs_per_round: int = 1
    """Passes over the best answers of a round."""
    temperature: float = 1.0
    """Of sampling."""
    top_p: float = 1.0
    """Share of the probability that is sampled from."""
    batch_size: int = 64
    """Answers sampled at once."""
    seed: int = 0
    """Of the draw of prompts and of sampling."""

    def max_steps(self, num_prompts: int, *, rows_per_step: int) -> int:
        """Optimizer steps of the whole run.

        Args:
            num_prompts: prompts that there are.
            rows_per_step: rows of an optimizer step.
        """
        rows = min(num_prompts, self.prompts_per_round or num_prompts)
        return self.num_rounds * self.epochs_per_round * -(-rows // rows_per_step)

    def sampling(self, number: int | None) -> Sampling:
        """How answers of a round are drawn; None for those that the rounds are compared by, the same in each."""
        seed = int(content_id("round", self.seed, -1 if number is None else number)[:15], 16)
        return Sampling(
            self.num_samples, self.max_new_tokens, self.temperature, self.top_p, seed=seed, batch_size=self.batch_size
        )


class Scored(NamedTuple):
    """Sampled answers to prompts, in their order."""

    ids: list[list[list[int]]]
    """Tokens of each answer."""
    rewards: list[list[float]]


class IterativeRun:
    """Takes a trainer through the rounds.

    Args:
        trainer: of a causal language model, before its first call.
        prompts: to learn from.
        held_out: prompts by which the rounds are compared; none are needed.
        reward: called with prompts, the text of one answer to each, and whether it ended by itself.
        rounds: how the run goes.

    Raises:
        ValueError: there are no prompts, or a number is out of range.
    """

    def __init__(
        self,
        trainer: IterativeSFTTrainer,
        *,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        reward: Reward,
        rounds: Rounds,
    ) -> None:
        strategy = SaveStrategy(trainer.args.save_strategy)
        if strategy is not SaveStrategy.NO:
            raise ValueError(f"expected save_strategy no, for a round is saved as a whole, found {strategy.value}")
        if not prompts or min(rounds.num_rounds, rounds.num_samples, rounds.epochs_per_round) < 1:
            raise ValueError(
                "expected prompts, and rounds, samples and epochs from 1, found "
                f"{len(prompts)}, {rounds.num_rounds}, {rounds.num_samples} and {rounds.epochs_per_round}"
            )
        self.trainer = trainer
        self.prompts = prompts
        self.held_out = held_out
        self.reward = reward
        self.rounds = rounds
        self.folder = Path(trainer.args.output_dir) / "rounds"

    def run(self) -> list[Point]:
        """All rounds, from where a run that was killed left off.

        Returns:
            A point of the curves before the first round (`round` 0) and one behind each: `held_out_reward` (mean over
            the answers to held-out prompts), and behind a round `reward` and `length` (means over its answers, which
            were sampled before it learned), `best_reward` (of those learned), `finished` (share that ended by
            themselves), `loss`, `prompts` and `step`.
        """
        if LOOP_CHECKPOINTS.last_whole(Path(self.trainer.args.output_dir)) is not None:
            self.trainer.resume()
            logger.info("going on behind %d calls", self.trainer.num_calls)
        first = self._point(0, {"step": 0.0})
        with stopping_between_steps():
            later = [self._point(number, self._round(number)) for number in range(1, self.rounds.num_rounds + 1)]
        self.trainer.finish()
        return [first, *later]

    def _point(self, number: int, found: Point) -> Point:
        if not self.held_out:
            return {"round": float(number), **found}

        def held_out_reward() -> Point:
            scored = self._score(self.held_out, None, f"held-out answers behind round {number}")
            return {"held_out_reward": float(np.mean(scored.rewards))}

        return {"round": float(number), **found, **kept(self.folder / f"{number}.held_out.json", held_out_reward)}

    def _round(self, number: int) -> Point:
        """Sample, score and learn; what an earlier process has done of it is taken up."""
        done = self.folder / f"{number}.json"
        if done.exists() and self.trainer.num_calls >= number * self.rounds.epochs_per_round:
            return dict(json.loads(done.read_text(encoding="utf-8")))
        prompts = self._turn(number)
        scored = self._kept_answers(number, prompts)
        best = [int(np.argmax(rewards)) for rewards in scored.rewards]
        input_ids, labels = [], []
        for prompt, answers, index in zip(prompts, scored.ids, best, strict=True):
            input_ids.append(torch.tensor([*prompt.input_ids, *answers[index]]))
            labels.append(torch.tensor([IGNORED] * len(prompt.input_ids) + answers[index]))
        losses = [self._loss_of_pass(number, place, input_ids, labels) for place in range(self.rounds.epochs_per_round)]
        point = {
            "reward": float(np.mean(scored.rewards)),
            "best_reward": float(np.mean([max(rewards) for rewards in scored.rewards])),
            "length": float(np.mean([len(ids) for answers in scored.ids for ids in answers])),
            "finished": float(np.mean(self._have_ended([ids for answers in scored.ids for ids in answers]))),
            "loss": float(np.mean(losses)),
            "prompts": float(len(prompts)),
            "step": float(self.trainer.state.global_step),
        }
        # In this order: a point without its checkpoint is made anew, a checkpoint without its point can't be.
        write_json(done, point)
        self.trainer.save_checkpoint()
        return point

    def _loss_of_pass(self, number: int, place: int, input_ids: list[Tensor], labels: list[Tensor]) -> float:
        """Learn the best answers of a round once more, and give the mean loss; kept if it was learned before."""
        file = self.folder / f"{number}.pass{place}.json"
        if self.trainer.num_calls > (number - 1) * self.rounds.epochs_per_round + place:
            return float(json.loads(file.read_text(encoding="utf-8"))["loss"])
        loss = float(self.trainer.step(input_ids, labels=labels)["loss"])
        write_json(file, {"loss": loss})
        if is_asked_to_stop(self.trainer.accelerator):
            self.trainer.save_checkpoint()
            leave(f"step {self.trainer.state.global_step}")
        return loss

    def _turn(self, number: int) -> list[Prompt]:
        """The prompts of a round, in the order that they were given in."""
        places = sorted(
            range(len(self.prompts)),
            key=lambda place: content_id("turn", self.rounds.seed, number, self.prompts[place].prompt_id),
        )
        return [self.prompts[place] for place in sorted(places[: self.rounds.prompts_per_round])]

    def _kept_answers(self, number: int, prompts: Sequence[Prompt]) -> Scored:
        file, progress = self.folder / f"{number}.answers.json", f"answers of round {number}"
        return Scored(**kept(file, lambda: self._score(prompts, number, progress)._asdict()))

    def _score(self, prompts: Sequence[Prompt], number: int | None, progress: str) -> Scored:
        """Answers to prompts and their rewards."""
        trainer = self.trainer
        tokenizer: Any = trainer.processing_class
        model = trainer.accelerator.unwrap_model(trainer.model)
        sampling = self.rounds.sampling(number)
        with trainer.accelerator.autocast():
            ids = sample_ids(model, tokenizer, [p.input_ids for p in prompts], sampling=sampling, progress=progress)
        flat = [answer for answers in ids for answer in answers]
        texts = tokenizer.batch_decode(flat, skip_special_tokens=True)
        asked = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
        rewards = np.array([float(value) for value in self.reward(asked, texts, self._have_ended(flat))])
        if rewards.shape != (len(texts),) or not np.isfinite(rewards).all():
            raise ValueError(
                f"expected a finite reward for each of {len(texts)} answers, found {rewards.shape} with "
                f"{int((~np.isfinite(rewards)).sum())} that aren't"
            )
        return Scored(ids, rewards.reshape(len(prompts), sampling.num_samples).tolist())

    def _have_ended(self, answers: Sequence[Sequence[int]]) -> list[bool]:
        trainer = self.trainer
        tokenizer: Any = trainer.processing_class
        return have_ended(answers, trainer.accelerator.unwrap_model(trainer.model), tokenizer)
