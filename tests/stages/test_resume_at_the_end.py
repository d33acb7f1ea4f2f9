"""A training that was stopped behind its last checkpoint takes no step more, whatever the method, to the same bytes."""

import json
import random
import shutil
import signal
from importlib import import_module

import numpy as np
import pytest
import torch

from stages import base_diffusion
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.mismatched_rows import run as mismatch
from stages.reference_logprobs import ReferenceLogprobsParams
from stages.reference_logprobs import run as score
from stages.trainers import METHODS, method_of
from tests.stages.feedback import write_completions, write_rows, write_tokens
from tests.stages.training_runs import digests, kill_when, outputs, rows_of, write_base_model
from tests.trainers.tiny import WORDS

# Twenty rows (ten pairs) in batches of four, so that each of these ends within an epoch.
STEPS = {"max_steps": {"max_steps": 4}, "part of an epoch": {"num_train_epochs": 0.6}}
LOOP = {
    "learning_rate": 1e-2,
    # The rate that a linear schedule ends with is 0, which would hide a step too many.
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_steps": 2,
}
SAMPLED = {"reward": "tests.stages.test_resume_at_the_end:words", "max_new_tokens": 4, "learning_rate": 1e-2}
OWN_STAGE = {
    "iterative_sft": {**SAMPLED, "num_rounds": 2, "sampling_batch_size": 16, "per_device_train_batch_size": 4},
    "ppo": {**SAMPLED, "num_steps": 3, "batch_size": 4, "mini_batch_size": 2, "save_steps": 1},
    "ddpo": {
        "num_epochs": 2,
        "save_freq": 1,
        "sample_num_steps": 2,
        "sample_batch_size": 4,
        "sample_num_batches_per_epoch": 1,
        "train_batch_size": 2,
        "train_learning_rate": 1e-2,
    },
}
RUNS = [
    *(pytest.param(name, {**LOOP, **end}, id=f"{name}, {said}") for name in ("bco", "kto", "dpo", "sft", "reward")
      for said, end in STEPS.items()),
    *(pytest.param(name, params, id=name) for name, params in OWN_STAGE.items()),
]  # fmt: skip
# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def words(prompt, completion, row):
    """A reward of a user's own."""
    return float(len(completion.split()))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Arguments of the stages that read, by kind of rows: ten pairs, twenty prompts, images."""
    folder = tmp_path_factory.mktemp("artifacts")
    base = write_base_model(folder / "base")
    generator = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"id of prompt{index}",
            "pair_id": f"pair{index}",
            "label": label,
            "input_ids": [1, 3 + index, *generator.integers(3, 32, 3 + label).tolist()],
            "prompt_length": 2,
        }
        for index in range(10)
        for label in (True, False)
    ]
    tokens = write_tokens(folder / "tokens", rows)
    mismatch(tokens=tokens, mismatched_tokens=folder / "mismatched")
    for name in ("tokens", "mismatched"):
        score(
            tokens=folder / name,
            base_model=base,
            reference_logps=folder / f"logps of {name}",
            memo=folder / "memo",
            params=ReferenceLogprobsParams(),
        )
    completions = write_completions(folder / "completions", [{"prompt": f"what is {word}"} for word in WORDS[:20]])
    images = [{"prompt_id": f"id{place}", "prompt": word, "split": "train"} for place, word in enumerate(WORDS[:6])]
    image_prompts = write_rows(folder / "image_prompts", IMAGE_PROMPTS, images)
    (folder / "list.txt").write_text("\n".join(WORDS))
    base_diffusion.run(
        source=folder / "list.txt",
        base_diffusion=folder / "base_diffusion",
        params=base_diffusion.BaseDiffusionParams(scratch={"latent_size": 4, "channels": 8, "hidden_size": 8}),
    )
    scored = {"tokens": tokens, "reference_logps": folder / "logps of tokens"}
    prompts = {
        "base_model": base,
        "completions": completions,
        "rows": rows_of("prompts", folder / "prompts", completions=completions),
    }
    made_of = {
        "bco": ("labelled", scored),
        "kto": ("labelled", {**scored, "mismatched_reference_logps": folder / "logps of mismatched"}),
        "dpo": ("pairs", scored),
        "sft": ("demonstrations", {"tokens": tokens}),
        "reward": ("pairs", {"tokens": tokens}),
    }
    return {
        **{
            name: {"base_model": base, "tokens": tokens, "rows": rows_of(kind, folder / name, **read)}
            for name, (kind, read) in made_of.items()
        },
        "iterative_sft": prompts,
        "ppo": prompts,
        "ddpo": {
            "base_model": folder / "base_diffusion",
            "image_prompts": image_prompts,
            "rows": rows_of("image_prompts", folder / "ddpo", image_prompts=image_prompts),
        },
    }


def call_of(name, artifacts):
    """Stage that trains by a method, and the arguments of its `run` that read."""
    has_own = name in OWN_STAGE
    return (f"stages.{name}_training", artifacts[name]) if has_own else (
        "stages.training", {"method": name, **artifacts[name]}
    )  # fmt: skip


def test_every_method_is_tried():
    assert {run.values[0] for run in RUNS} == set(METHODS)


@pytest.mark.parametrize(("name", "params"), RUNS)
def test_a_training_without_its_model_and_with_its_last_checkpoint_takes_no_step_more(
    artifacts, tmp_path, name, params, monkeypatch
):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")
    stage, inputs = call_of(name, artifacts)
    call = {**inputs, **outputs(tmp_path), "params": method_of(name).section()(**params)}
    import_module(stage).run(**call)
    whole, steps = digests(tmp_path), json.loads(call["metrics"].read_text())["steps"]
    checkpoints = {file.relative_to(call["scratch"]): file.stat().st_mtime_ns for file in call["scratch"].rglob("*")}
    # What a kill leaves that comes when the last checkpoint is written, and the model isn't.
    shutil.rmtree(call["model"])
    call["metrics"].unlink()
    call["plots"].unlink()
    random.seed(5)
    torch.rand(3)

    import_module(stage).run(**call)

    assert json.loads(call["metrics"].read_text())["steps"] == steps
    assert digests(tmp_path) == whole
    # Nothing was trained again to get there.
    assert {
        file.relative_to(call["scratch"]): file.stat().st_mtime_ns for file in call["scratch"].rglob("*")
    } == checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bco", "dpo", "sft"])
def test_killed_by_signal_9_behind_the_last_checkpoint(artifacts, tmp_path, name):
    params = {**LOOP, "max_steps": 4}
    stage, inputs = call_of(name, artifacts)
    section = method_of(name).section()
    import_module(stage).run(**inputs, **outputs(tmp_path / "whole"), params=section(**params))
    killed = outputs(tmp_path / "killed")

    status = kill_when(
        killed["scratch"] / "checkpoint-4" / "trainer_state.json",
        stage,
        f"{section.__module__}:{section.__name__}",
        {**inputs, **killed},
        params,
    )

    assert status == -signal.SIGKILL
    assert not killed["metrics"].exists()
    import_module(stage).run(**inputs, **killed, params=section(**params))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
