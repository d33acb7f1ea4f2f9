"""The loop of PPO: it learns, it goes on after a stop to the same bits, and its order follows from the seed."""

import random

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig

from stages.models.generation import Sampling
from stages.models.value_head import AutoModelForSeq2SeqLMWithValueHead
from stages.rows.prompts import Prompt
from stages.trainers import PPOTrainer
from stages.trainers.core.named_reward import Reward
from stages.trainers.ppo.run import RunSettings, curves_of, prompts_of_step, run_ppo, sample_responses
from stages.trainers.ppo.state import STEP_CHECKPOINTS
from tests.trainers.tiny import WORDS, tiny_t5, tiny_tokenizer
from tests.trainers.tiny_ppo import ppo_config, tiny_policy, tiny_trainer

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SAMPLING = Sampling(1, 4, batch_size=8)


def prompts(number=11):
    return [
        Prompt(f"prompt{index}", [7 + index, 8], f"<user> {WORDS[index]}", WORDS[index], {"index": index})
        for index in range(number)
    ]


def share_of_good(questions, texts, rows, are_complete):
    return [text.split().count("good") / 4 for text in texts]


GOOD = Reward("share_of_good", "user", share_of_good)


def made(*, learning_rate=1e-3, lora=False, **arguments):
    settings = {"batch_size": 8, "mini_batch_size": 4, "use_score_scaling": True, "learning_rate": learning_rate}
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    torch.manual_seed(5)
    model = tiny_policy(peft_config=adapter)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)
    return PPOTrainer(
        ppo_config(**{**settings, **arguments}), model, None, tiny_tokenizer(), optimizer=optimizer,
        lr_scheduler=schedule,
    )  # fmt: skip


def test_the_policy_comes_to_say_what_is_rewarded():
    trainer = made(learning_rate=1e-2, batch_size=32, mini_batch_size=32, init_kl_coef=0.01, ppo_epochs=4)

    points = run_ppo(trainer, prompts(), GOOD, RunSettings(15, SAMPLING._replace(batch_size=32)))

    assert [point["step"] for point in points] == list(range(1, 16))
    assert points[0]["reward"] < 0.1
    assert points[-1]["reward"] > 0.7
    assert points[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert points[-1]["kl"] > 1.0
    table = curves_of(points)
    assert list(table["step"])[:2] == [1, 2]
    assert {"reward", "reward_std", "kl", "kl_coef", "response_length", "learning_rate"} <= set(table.columns)


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, lora):
    whole = made(lora=lora)
    expected = run_ppo(whole, prompts(), GOOD, RunSettings(5, SAMPLING))
    run_ppo(made(lora=lora), prompts(), GOOD, RunSettings(3, SAMPLING, save_steps=2), folder=tmp_path)
    # a new process stands elsewhere in its random streams
    random.random()
    torch.rand(7)

    resumed = made(lora=lora)
    found = run_ppo(resumed, prompts(), GOOD, RunSettings(5, SAMPLING, save_steps=2), folder=tmp_path)

    assert found == expected
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.method_state() == whole.method_state()
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_a_state_holds_all_that_steers(tmp_path):
    trainer = made(push_to_hub_if_best_kwargs={})
    run_ppo(trainer, prompts(), GOOD, RunSettings(2, SAMPLING))
    trainer.best_score.is_best(0.5)
    trainer.save_state(tmp_path / "state", extra={"note": [1]})
    trainer.save_state(tmp_path / "state", extra={"note": [2]})

    other = made()
    assert other.load_state(tmp_path / "state") == {"note": [2]}

    assert other.current_step == 2
    assert (other.kl_ctl.value, other.running.std) == (trainer.kl_ctl.value, trainer.running.std)
    assert other.best_score.highest == 0.5
    assert other.random.permutation(20).tolist() == trainer.random.permutation(20).tolist()
    assert other.lr_scheduler.state_dict() == trainer.lr_scheduler.state_dict()
    assert other.optimizer.param_groups[0]["lr"] < 1e-3
    assert not list((tmp_path / "state").glob("custom_checkpoint*"))


def test_a_dataloader_goes_on_with_the_orders_that_were_next(tmp_path):
    def made_with_rows():
        return PPOTrainer(
            ppo_config(), tiny_policy(), None, tiny_tokenizer(), Dataset.from_dict({"query": list("abcdefgh")})
        )

    def epoch(trainer):
        return [batch["query"] for batch in trainer.dataloader]

    whole, resumed = made_with_rows(), made_with_rows()
    first = epoch(whole)
    whole.save_state(tmp_path / "state")

    resumed.load_state(tmp_path / "state")

    found = [epoch(resumed), epoch(resumed)]
    assert found == [epoch(whole), epoch(whole)]
    assert first not in found


def test_what_a_kill_left_of_a_checkpoint_is_passed_over(tmp_path):
    for name in ("step-2", "step-10"):
        tiny_trainer().save_state(tmp_path / name)
    (tmp_path / "step-12").mkdir()
    (tmp_path / ".step-14.tmp").mkdir()

    assert STEP_CHECKPOINTS.last_whole(tmp_path) == tmp_path / "step-10"
    with pytest.raises(ValueError, match="expected the state of a PPO trainer, found none"):
        tiny_trainer().load_state(tmp_path / "step-12")


def test_what_is_sampled_follows_from_the_seed_and_the_step():
    trainer = tiny_trainer()
    batch = [*prompts(3), prompts(1)[0]]

    first = sample_responses(trainer, batch, SAMPLING, step=0)

    assert sample_responses(trainer, batch, SAMPLING, step=0) == first
    assert sample_responses(trainer, batch, SAMPLING, step=1) != first
    assert sample_responses(trainer, batch, SAMPLING._replace(seed=1), step=0) != first
    assert first[0] != first[3]  # one prompt twice gets two answers


def test_a_prompt_that_stands_in_a_step_twice_gets_two_responses_whatever_process_it_is_on():
    settings = {"step": 3, "batch_size": 4, "seed": 0}
    # eight places for three prompts: each stands there twice or more
    whole = prompts_of_step(prompts(3), **{**settings, "batch_size": 8}, process=0, num_processes=1)

    parts = [prompts_of_step(prompts(3), **settings, process=rank, num_processes=2) for rank in (0, 1)]

    joined = [item for both in zip(*parts, strict=True) for item in both]
    assert joined == whole
    assert len({(prompt.user, turn) for prompt, turn in joined}) == 8
    trainer = tiny_trainer()
    (first,), (second,) = (sample_responses(trainer, prompts(1), SAMPLING, step=0, turns=[turn]) for turn in (0, 1))
    assert first != second


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps the precision for all that a process makes later."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator")
def test_responses_are_sampled_in_the_types_of_training():
    trainer = tiny_trainer(accelerator_kwargs={"cpu": True, "mixed_precision": "bf16"})
    types = []
    trainer.model.pretrained_model.lm_head.register_forward_hook(lambda _, __, logits: types.append(logits.dtype))

    sample_responses(trainer, prompts(2), SAMPLING, step=0)

    assert set(types) == {torch.bfloat16}


def test_each_pass_takes_every_prompt_once():
    seen = []

    def watched(questions, texts, rows, are_complete):
        seen.extend(row["index"] for row in rows)
        return [float(len(text)) for text in texts]

    run_ppo(made(ppo_epochs=1), prompts(12), Reward("watched", "user", watched), RunSettings(3, SAMPLING))

    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_a_reward_gets_the_prompts_that_it_wants():
    told = {}

    def watched(name):
        def function(questions, texts, rows, are_complete):
            told[name] = questions[0]
            return [float(len(text)) for text in texts]

        return Reward(name, name, function)

    for name in ("user", "templated"):
        run_ppo(made(ppo_epochs=1), prompts(1), watched(name), RunSettings(1, SAMPLING))

    assert told == {"user": WORDS[0], "templated": f"<user> {WORDS[0]}"}


def test_a_reward_is_told_which_responses_ended_by_themselves():
    told = []

    def watched(questions, texts, rows, are_complete):
        told.extend(are_complete)
        return [float(len(text)) for text in texts]

    trainer = made(ppo_epochs=1, batch_size=32)
    trainer.model.generation_config.eos_token_id = [2, 9]
    expected = sample_responses(trainer, (prompts() * 3)[:32], SAMPLING, step=0)

    run_ppo(trainer, (prompts() * 3)[:32], Reward("watched", "user", watched), RunSettings(1, SAMPLING))

    assert sorted(told) == sorted(ids[-1] in {2, 9} for ids in expected)
    assert 0 < sum(told) < len(told)


def test_an_encoder_decoder_has_no_loop_of_its_own():
    trainer = tiny_trainer(model=AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5()))

    with pytest.raises(ValueError, match="expected a causal language model, found an encoder-decoder"):
        run_ppo(trainer, prompts(), GOOD, RunSettings(1, SAMPLING))
