"""Stage `iterative_sft_training`: rounds of best of n over the prompts of a log, the same bytes after a kill."""

import json
import signal

import pytest
import torch

from stages.contracts.files import files_below
from stages.iterative_sft_training import run
from stages.models.loading import load_causal_lm
from stages.models.prompt_room import prompt_room
from stages.trainers.core.sections import LoraParams
from stages.trainers.iterative_sft.section import IterativeSFTTrainingParams
from stages.trainers.iterative_sft.trainer import IterativeSFTTrainer
from tests.stages.feedback import write_completions
from tests.stages.training_runs import digests, kill_when, outputs, rows_of, told_to_stop, write_base_model
from tests.trainers.tiny import WORDS

PARAMS = {
    "reward": "tests.stages.test_iterative_sft_training:says_sea",
    "num_rounds": 2,
    "num_samples": 4,
    "max_new_tokens": 4,
    "sampling_batch_size": 16,
    "num_held_out": 3,
    "num_train_epochs": 2,
    "learning_rate": 2e-2,
    "per_device_train_batch_size": 4,
    "disable_dropout": False,
}


def says_sea(prompts, completions):
    """A reward of a user's own."""
    return [completion.split().count("sea") for completion in completions]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Arguments of `run` that read: twelve prompts to learn from, two of them twice, and five that are held out."""
    folder = tmp_path_factory.mktemp("inputs")
    words = [*WORDS[:12], *WORDS[:2], *WORDS[12:17]]
    rows = [
        {
            "prompt": f"<s> <user> what is {word} <assistant> ",
            "split": "test" if i >= 14 else "train",
            "messages": json.dumps({"prompt": f"what is {word}"}),
            "source": json.dumps({"topic": word}),
        }
        for i, word in enumerate(words)
    ]
    completions = write_completions(folder / "completions", rows)
    return {
        "base_model": write_base_model(folder / "base"),
        "completions": completions,
        "rows": rows_of("prompts", folder / "rows", completions=completions),
    }


def test_the_reward_rises_and_is_written_round_by_round(inputs, tmp_path):
    written = outputs(tmp_path)

    run(**inputs, **written, params=IterativeSFTTrainingParams(**PARAMS, report_to=["tensorboard"]))

    lines = written["plots"].read_text().splitlines()
    assert lines[0] == "round,step,held_out_reward,reward,best_reward,length,finished,loss,prompts"
    assert [line.split(",")[:2] for line in lines[1:]] == [["0", "0"], ["1", "6"], ["2", "12"]]
    metrics = json.loads(written["metrics"].read_text())
    assert metrics["rows"] == {"train": 12, "held_out": 3, "too_long": 0}
    assert metrics["last"]["held_out_reward"] > metrics["first"]["held_out_reward"]
    ids = torch.tensor([[1, 6, 7]])
    before, after = (load_causal_lm(path)(input_ids=ids).logits for path in (inputs["base_model"], written["model"]))
    assert not torch.equal(before, after)


def test_gives_the_same_bytes_twice_and_no_pickle(inputs, tmp_path):
    params = IterativeSFTTrainingParams(**PARAMS, lora=LoraParams(r=2))

    for name in ("one", "two"):
        run(**inputs, **outputs(tmp_path / name), params=params)

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    suffixes = {file.suffix for file in files_below(outputs(tmp_path / "one")["model"])}
    assert suffixes == {".json", ".safetensors", ".md", ".jinja"}
    assert (outputs(tmp_path / "one")["model"] / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("single_thread")
@pytest.mark.long
def test_goes_on_after_kill_9_to_the_same_bytes(inputs, tmp_path):
    run(**inputs, **outputs(tmp_path / "whole"), params=IterativeSFTTrainingParams(**PARAMS))
    killed = outputs(tmp_path / "killed")

    status = kill_when(
        killed["scratch"] / "rounds" / "2.answers.json",
        "stages.iterative_sft_training",
        "stages.trainers.iterative_sft.section:IterativeSFTTrainingParams",
        {**inputs, **killed},
        PARAMS,
    )

    assert status == -signal.SIGKILL
    assert not killed["metrics"].exists()
    run(**inputs, **killed, params=IterativeSFTTrainingParams(**PARAMS))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


# In the first pass of the second round, at the end of that pass, and at the end of the round; a pass has 3 steps.
@pytest.mark.slow
@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("step", [8, 9, 12])
def test_goes_on_from_the_step_that_it_was_told_to_stop_in(inputs, tmp_path, monkeypatch, step):
    params = IterativeSFTTrainingParams(**PARAMS)
    run(**inputs, **outputs(tmp_path / "whole"), params=params)
    stopped = outputs(tmp_path / "stopped")

    said = told_to_stop(
        monkeypatch,
        IterativeSFTTrainer,
        "training_step",
        call=step,
        then=lambda: run(**inputs, **stopped, params=params),
    )

    assert f"behind step {step}," in said
    run(**inputs, **stopped, params=params)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_prompts_that_leave_no_room_are_counted(inputs, tmp_path):
    params = IterativeSFTTrainingParams(**{**PARAMS, "max_new_tokens": 59, "num_held_out": 9})

    with pytest.raises(ValueError, match="prompts of at most 5 tokens to learn from, found none .*'too_long': 17"):
        run(**inputs, **outputs(tmp_path), params=params)


def test_answers_that_leave_no_room_for_a_prompt_are_refused_before_the_model_is_loaded(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.models.loading.load_causal_lm", None)

    with pytest.raises(ValueError, match="max_new_tokens: expected fewer than the 64 positions of the model, found 64"):
        run(**inputs, **outputs(tmp_path), params=IterativeSFTTrainingParams(**{**PARAMS, "max_new_tokens": 64}))


def test_rounds_are_compared_by_nothing_if_asked_to(inputs, tmp_path):
    params = {**PARAMS, "num_rounds": 1, "num_train_epochs": 1, "num_held_out": 0}

    run(**inputs, **outputs(tmp_path), params=IterativeSFTTrainingParams(**params, lora=LoraParams(r=2)))

    assert "held_out_reward" not in outputs(tmp_path)["plots"].read_text()
    # A prompt before an adapter has the room of its base.
    assert prompt_room(outputs(tmp_path)["model"], max_new_tokens=4) == 60


def test_a_count_of_steps_is_refused_for_the_rounds_decide():
    with pytest.raises(ValueError, match="max_steps"):
        IterativeSFTTrainingParams(max_steps=10)
