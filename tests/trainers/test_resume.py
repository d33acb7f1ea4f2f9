"""A run that goes on from a checkpoint ends as one that was never stopped, to the last bit."""

import errno
import json
import resource
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import TrainerCallback

from stages.trainers.bco.trainer import BCOTrainer
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS, written_to
from tests.trainers.tiny import bco_config, bco_trainer, encoded_rows, tiny_llama, tiny_tokenizer

# Twelve rows in batches of two, two batches a step: three steps an epoch, three epochs.
RUN = {
    "max_steps": -1,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 2,
    "disable_dropout": False,
}


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def trained(folder, **arguments):
    return bco_trainer(folder, model=tiny_llama(dropout=0.2), **RUN, **arguments)


@pytest.fixture(scope="module", params=[{}, {"reward_shift": "balanced", "reward_shift_decay": 0.9}], ids=str)
def run(request, tmp_path_factory):
    """A run that was never stopped, its folder and its settings."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trained(folder, **request.param)
    trainer.train()
    return trainer, folder, request.param


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8])
def test_goes_on_bit_for_bit_from_any_step(tmp_path, step, run):
    whole, folder, settings = run
    # What is there when the run is killed in the step after this one.
    for number in range(1, step + 1):
        shutil.copytree(folder / f"checkpoint-{number}", tmp_path / f"checkpoint-{number}")
    torch.rand(7)  # a new process stands elsewhere in its random stream

    resumed = trained(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert all(torch.equal(*pair) for pair in zip(resumed.shift.moments, whole.shift.moments, strict=True))
    points = [[line for line in trainer.state.log_history if "loss" in line] for trainer in (resumed, whole)]
    assert points[0] == points[1]


def test_an_adapter_goes_on_bit_for_bit(tmp_path):
    def made(folder, **arguments):
        adapter = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return trained(folder, peft_config=adapter, **arguments)

    tiny_llama().save_pretrained(tmp_path / "base")
    whole = made(tmp_path / "whole")
    whole.train()
    made(tmp_path / "cut", callbacks=[StopAfter(4)]).train()

    resumed = made(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_what_a_kill_left_of_a_checkpoint_is_passed_over(tmp_path):
    trained(tmp_path, callbacks=[StopAfter(4)]).train()
    for step, damage in ((4, "trainer_state.json"), (3, "preference_state.json")):
        file = tmp_path / f"checkpoint-{step}" / damage
        file.write_text(file.read_text()[:20])
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-x").mkdir()

    assert LOOP_CHECKPOINTS.last_whole(tmp_path) == tmp_path / "checkpoint-2"


def test_a_damaged_checkpoint_is_passed_over_and_never_gone_on_from(tmp_path):
    trained(tmp_path, callbacks=[StopAfter(2)]).train()
    newest, older = tmp_path / "checkpoint-2", tmp_path / "checkpoint-1"
    files = [file for file in newest.iterdir() if file.name != "digests.json"]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {file.name for file in files}

    for file in files:
        content = file.read_bytes()
        for other in (content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2], None):
            file.unlink() if other is None else file.write_bytes(other)
            assert LOOP_CHECKPOINTS.last_whole(tmp_path) == older, file.name
            with pytest.raises(ValueError, match=rf"found others or none for {file.name}; go on from another"):
                trained(tmp_path).train(resume_from_checkpoint=str(newest))
            file.write_bytes(content)

    assert LOOP_CHECKPOINTS.last_whole(tmp_path) == newest


def test_old_checkpoints_go_under_a_name_that_nobody_reads(tmp_path, monkeypatch):
    removed, remove = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **named: removed.append(path) or remove(path, **named))

    trained(tmp_path, save_total_limit=2).train()

    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]
    assert {path.name for path in removed} == {f".checkpoint-{step}.tmp-gone" for step in range(1, 8)}


def test_what_was_just_written_is_kept_beside_damaged_ones_of_higher_numbers(tmp_path):
    for number in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{number}").mkdir()

    LOOP_CHECKPOINTS.remove_oldest(tmp_path / "checkpoint-6", limit=2, best=tmp_path / "checkpoint-2")

    assert set(LOOP_CHECKPOINTS.numbered(tmp_path)) == {2, 6}
    LOOP_CHECKPOINTS.remove_oldest(tmp_path / "checkpoint-6", limit=None)
    assert set(LOOP_CHECKPOINTS.numbered(tmp_path)) == {2, 6}


def test_says_that_there_is_no_checkpoint_or_one_of_another_trainer(tmp_path):
    with pytest.raises(ValueError, match="expected a whole checkpoint to go on from, found none"):
        trained(tmp_path).train(resume_from_checkpoint=True)
    trained(tmp_path, callbacks=[StopAfter(1)]).train()
    for name in ("preference_state.json", "digests.json"):
        (tmp_path / "checkpoint-1" / name).unlink()

    with pytest.raises(ValueError, match="expected the state of a preference trainer"):
        trained(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_b9_evaluation_from_a_checkpoint_has_its_classifier(tmp_path):
    def embed(input_ids, attention_mask):
        return torch.nn.functional.one_hot(input_ids, 32).float().mean(1)

    udm = {"embedding_func": embed, "embedding_tokenizer": tiny_tokenizer()}
    first = trained(tmp_path, callbacks=[StopAfter(1)], **udm)
    first.train()
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(checkpoint, tmp_path / "kept")

    second = BCOTrainer(
        str(tmp_path / "kept"),
        args=bco_config(tmp_path, resume_from_checkpoint=str(tmp_path / "kept")),
        eval_dataset=encoded_rows(4),
        processing_class=tiny_tokenizer(),
        **udm,
    )

    assert json.dumps(second.method_state()) == json.dumps(first.method_state())
    assert "undesired_weight" in second.eval_dataset.column_names


@pytest.fixture
def small_disk():
    """Files may get no larger than 30 kB, as where a disk is full behind them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_takes_no_checkpoint_is_told_in_a_sentence(tmp_path):
    with pytest.raises(OSError, match=r"checkpoint-1: expected to write it whole, found .*GB are free there"):
        trained(tmp_path).train()


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_word_for_a_full_disk_is_understood(tmp_path, error):
    with pytest.raises(OSError, match="Make room and run the same command again"), written_to(tmp_path / "step-2"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("NCCL"), FileNotFoundError(errno.ENOENT, "gone")], ids=str)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as found, written_to(tmp_path):
        raise error

    assert found.value is error
