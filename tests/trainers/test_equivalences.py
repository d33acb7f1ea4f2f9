"""What a trainer computes in two ways is the same: references, batches cut up, raw rows and columns, processes."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from stages.contracts.closure import ROOT
from tests.trainers import all_methods
from tests.trainers.tiny import METHODS, lines, method_trainer, tiny_llama, tiny_t5

EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def raw(method, number=16):
    return Dataset.from_list(METHODS[method].raw(number))


def adapter(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def run(method, folder, **arguments):
    trainer = method_trainer(method, folder, **{"max_steps": 3, **arguments})
    trainer.train()
    losses = [line["loss"] for line in lines(trainer)]
    return losses, {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_equal_runs(one, other, *, atol=1e-5):
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    assert len(set(one[0])) > 1
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=0, atol=atol)


@EACH_METHOD
def test_a_reference_from_the_column_is_that_of_a_live_model_and_of_a_copy(tmp_path, method):
    copied = run(method, tmp_path, rows=raw(method))

    assert_equal_runs(run(method, tmp_path, rows=raw(method), ref_model=tiny_llama()), copied)
    assert_equal_runs(run(method, tmp_path, rows=raw(method), precompute_ref_log_probs=True), copied)


@EACH_METHOD
def test_an_adapter_switched_off_is_a_live_model_without_it(tmp_path, method):
    off = run(method, tmp_path, rows=raw(method), peft_config=adapter())

    live = run(method, tmp_path, rows=raw(method), peft_config=adapter(), ref_model=tiny_llama())
    column = run(method, tmp_path, rows=raw(method), peft_config=adapter(), precompute_ref_log_probs=True)

    assert_equal_runs(live, off)
    assert_equal_runs(column, off)


@EACH_METHOD
@pytest.mark.parametrize("size", [4, 2])
def test_eight_rows_at_once_are_fewer_accumulated(tmp_path, method, size):
    # the divergence of KTO is that of a step in any case, the reward shift of BCO if asked for
    settings = {"rows": METHODS[method].encoded(16)} | ({"reward_shift_update": "step"} if method == "bco" else {})
    # Adam makes a whole step of a gradient that is nothing but rounding; here weights differ as gradients do.
    settings |= {"optim": "sgd", "learning_rate": 0.1}

    once = run(method, tmp_path, per_device_train_batch_size=8, **settings)
    cut = run(method, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **settings)

    assert_equal_runs(cut, once, atol=1e-7)


@EACH_METHOD
def test_raw_rows_are_the_columns_that_stages_make_of_them(tmp_path, method):
    made = method_trainer(
        method, tmp_path, rows=raw(method), ref_model=tiny_llama(seed=2), precompute_ref_log_probs=True
    ).train_dataset
    kinds = ("row_id", "label", "input_ids", "prompt_length", "logps")
    columns = made.select_columns([name for name in made.column_names if name.endswith(kinds)])

    from_raw = run(method, tmp_path, rows=raw(method), ref_model=tiny_llama(seed=2))

    assert_equal_runs(run(method, tmp_path, rows=columns), from_raw)


@EACH_METHOD
def test_bf16_stays_close_to_full_precision(tmp_path, method):
    settings = {"rows": raw(method, 24), "learning_rate": 1e-3, "max_steps": 5}

    full, half = (run(method, tmp_path, bf16=bf16, **settings)[0] for bf16 in (False, True))

    assert half == pytest.approx(full, rel=2e-2)
    assert half != full


@EACH_METHOD
def test_b15_an_encoder_decoder_learns(tmp_path, method):
    rows = raw(method, 12)
    trainer = method_trainer(method, tmp_path, model=tiny_t5(), rows=rows, eval_dataset=rows, max_steps=25, beta=0.5)

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(0.5 if method == "kto" else math.log(2), rel=1e-6)
    assert trainer.evaluate()["eval_rewards/margins"] > 0.5


@EACH_METHOD
def test_an_adapter_learns_and_the_base_stays(tmp_path, method):
    model = tiny_llama()
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = method_trainer(
        method, tmp_path, model=model, rows=raw(method), peft_config=adapter(), max_steps=20, beta=0.5
    )

    trainer.train()

    assert lines(trainer)[-1]["rewards/margins"] > 0.1
    for name, weight in trainer.model.unload().state_dict().items():
        assert torch.equal(weight, base[name])


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(
    ("method", "settings"),
    [("kto", {}), ("dpo", {}), ("dpo", {"loss_type": "bco_pair"}), ("dpo", {"loss_type": "simpo"})],
    ids=["kto", "dpo", "bco_pair", "simpo"],
)
def test_a_run_goes_on_bit_for_bit_from_a_checkpoint(tmp_path, method, settings):
    def made(folder, **arguments):
        return method_trainer(
            method,
            folder,
            model=tiny_llama(dropout=0.2),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            save_steps=2,
            logging_steps=3,
            disable_dropout=False,
            **settings,
            **arguments,
        )

    whole = made(tmp_path / "whole")
    whole.train()
    made(tmp_path / "cut", callbacks=[StopAfter(2)], save_strategy="steps").train()
    torch.rand(7)  # a new process stands elsewhere in its random stream

    resumed = made(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    # step 3 is logged for all three steps, of which two were before the stop
    assert lines(resumed) == lines(whole)
    assert resumed.method_state() == whole.method_state()
    assert bool(whole.method_state()) == (method == "kto" or settings.get("loss_type") == "bco_pair")


def in_two_processes(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        distributed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        distributed |= {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", all_methods.__name__, str(folder)]
        environment = {**os.environ, **distributed}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=250) for process in processes] == [0, 0]
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.long
def test_two_processes_are_one(tmp_path):
    one = all_methods.trained(tmp_path / "one", num_processes=1)
    two = in_two_processes(tmp_path / "two")

    one |= all_methods.trained_on_few(tmp_path / "few", num_processes=1)
    assert one.keys() == {*METHODS, "kto with terms", "dpo with terms", "reward", "sft"}
    for method in one:
        ours, theirs = one[method], two[method]
        for line, other in zip(ours["lines"], theirs["lines"], strict=True):
            assert line == pytest.approx(other, rel=1e-4, abs=1e-5), method
        for name, values in ours.get("rewards", {}).items():
            assert values == pytest.approx(theirs["rewards"][name], rel=1e-4, abs=1e-6)
        for name, weight in ours["weights"].items():
            torch.testing.assert_close(weight, theirs["weights"][name], rtol=0, atol=1e-5)
