"""Rounds of best of n: what is sampled, what is learned, and going on after a kill."""

import json

import pytest
import torch

from stages.losses.sft import IGNORED
from stages.models.generation import sample_ids
from stages.rows.prompts import Prompt
from stages.trainers.iterative_sft.run import IterativeRun, Rounds
from stages.trainers.iterative_sft.trainer import IterativeSFTTrainer
from tests.trainers.tiny import WORDS, tiny_llama, tiny_tokenizer
from tests.trainers.tiny_iterative import batches_of, iterative_arguments

ROUNDS = Rounds(num_rounds=2, num_samples=4, max_new_tokens=4, batch_size=16, seed=3)


def prompts(words):
    return [
        Prompt(word, tiny_tokenizer()(f"what is {word}")["input_ids"], f"what is {word}", word, {"word": word})
        for word in words
    ]


def likes_sea(asked, answers, are_complete=None):
    """How often an answer says sea."""
    return [answer.split().count("sea") for answer in answers]


class Killed(Exception):
    pass


def dies_at(number):
    """A reward that fails when it is called for the `number`th time."""
    calls = []

    def reward(asked, answers, are_complete):
        calls.append(len(answers))
        if len(calls) == number:
            raise Killed
        return likes_sea(asked, answers)

    return reward


def made(folder, *, rounds=ROUNDS, reward=likes_sea, num_prompts=12, held_out=3, **changes):
    steps = rounds.max_steps(num_prompts, rows_per_step=4)
    settings = {"per_device_train_batch_size": 4, "max_steps": steps, "learning_rate": 2e-2, **changes}
    trainer = IterativeSFTTrainer(tiny_llama(dropout=0.1), iterative_arguments(folder, **settings), tiny_tokenizer())
    words = prompts(WORDS)
    return IterativeRun(
        trainer,
        prompts=words[:num_prompts],
        held_out=words[-held_out:] if held_out else [],
        reward=reward,
        rounds=rounds,
    )


def test_the_reward_rises_from_round_to_round(tmp_path):
    points = made(tmp_path, rounds=ROUNDS._replace(num_rounds=4, epochs_per_round=3)).run()

    assert [point["round"] for point in points] == [0, 1, 2, 3, 4]
    assert points[-1]["reward"] > 2 * points[1]["reward"]
    assert points[-1]["held_out_reward"] > 2 * points[0]["held_out_reward"]
    assert all(point["best_reward"] >= point["reward"] for point in points[1:])
    assert points[-1]["step"] == 4 * 3 * 3


def test_the_best_answer_to_each_prompt_is_learned_and_its_prompt_is_not(tmp_path):
    run = made(tmp_path, rounds=ROUNDS._replace(num_rounds=1), per_device_train_batch_size=12, max_steps=1)
    seen = batches_of(run.trainer)
    sampled = sample_ids(
        run.trainer.model, tiny_tokenizer(), [p.input_ids for p in run.prompts], sampling=run.rounds.sampling(1)
    )

    run.run()

    tokenizer = tiny_tokenizer()
    best = []
    for prompt, answers in zip(run.prompts, sampled, strict=True):
        rewards = likes_sea(None, tokenizer.batch_decode(answers))
        best.append([IGNORED] * len(prompt.input_ids) + answers[rewards.index(max(rewards))])
    width = max(map(len, best))
    assert sorted(seen[0]["labels"]) == sorted(row + [IGNORED] * (width - len(row)) for row in best)


def test_answers_are_sampled_in_the_types_of_training_from_the_first_round_on(tmp_path):
    run = made(tmp_path, rounds=ROUNDS._replace(num_rounds=1), bf16=True)
    types = []
    run.trainer.model.lm_head.register_forward_hook(lambda _, __, logits: types.append(logits.dtype))

    run.run()

    assert set(types) == {torch.bfloat16}


def test_the_reward_is_told_each_prompt_with_its_columns(tmp_path):
    asked = []

    def reward(prompts, answers, are_complete):
        asked.extend(prompts)
        return [0.0] * len(answers)

    made(tmp_path, rounds=ROUNDS._replace(num_rounds=1), reward=reward, held_out=0).run()

    assert [prompt.text("templated") for prompt in asked[::4]] == [f"what is {word}" for word in WORDS[:12]]
    assert asked[0].row == {"word": WORDS[0]}


def test_the_reward_is_told_which_answers_ended_by_themselves(tmp_path):
    told = []
    run = made(
        tmp_path,
        rounds=ROUNDS._replace(num_rounds=1),
        reward=lambda _, answers, are_complete: told.extend(are_complete) or [0.0] * len(answers),
        held_out=0,
    )
    run.trainer.model.generation_config.eos_token_id = [2, 9]

    (_, point) = run.run()

    sampled = json.loads((tmp_path / "rounds" / "1.answers.json").read_text())["ids"]
    assert told == [ids[-1] in {2, 9} for answers in sampled for ids in answers]
    assert 0 < point["finished"] == sum(told) / len(told) < 1


def test_each_round_has_prompts_and_answers_of_its_own(tmp_path):
    run = made(tmp_path, rounds=ROUNDS._replace(prompts_per_round=5))
    turns = [[prompt.prompt_id for prompt in run._turn(number)] for number in (1, 2)]

    run.run()

    assert turns[0] != turns[1]
    answers = [json.loads((tmp_path / "rounds" / f"{number}.answers.json").read_text())["ids"] for number in (1, 2)]
    assert [len(found) for found in answers] == [5, 5]
    assert run.trainer.state.global_step == 2 * 2


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_goes_on_bit_for_bit_after_a_kill_in_any_round(tmp_path, call):
    whole = made(tmp_path / "whole")
    expected = whole.run()
    # The reward is called for held-out answers, round 1, held-out, round 2, held-out.
    with pytest.raises(Killed):
        made(tmp_path / "cut", reward=dies_at(call)).run()
    torch.rand(7)  # a new process stands elsewhere in its random stream

    resumed = made(tmp_path / "cut")
    found = resumed.run()

    assert found == expected
    for ours, theirs in zip(resumed.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_answers_that_were_scored_are_not_sampled_again(tmp_path, monkeypatch):
    run = made(tmp_path)
    monkeypatch.setattr(run.trainer, "step", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run.run()
    scored = []

    made(tmp_path, reward=lambda asked, answers, _: scored.append(len(answers)) or likes_sea(asked, answers)).run()

    # held-out answers behind round 1, round 2 and the held-out answers behind it
    assert scored == [12, 48, 12]


@pytest.mark.parametrize("gives", [[1.0], [float("nan")] * 12])
def test_a_reward_that_is_no_finite_number_per_answer_is_refused(tmp_path, gives):
    with pytest.raises(ValueError, match="a finite reward for each of 12 answers"):
        made(tmp_path, reward=lambda *_: gives).run()


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save_strategy no, for a round is saved as a whole, found steps"):
        made(tmp_path, save_strategy="steps")
    with pytest.raises(ValueError, match="found 0, 2, 4 and 1"):
        made(tmp_path, num_prompts=0, max_steps=1)
    with pytest.raises(ValueError, match="found 12, 2, 0 and 1"):
        made(tmp_path, rounds=ROUNDS._replace(num_samples=0))
