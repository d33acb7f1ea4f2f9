"""On an accelerator: the numbers of the CPU, half precision, samples, and going on from a checkpoint.

pytest -m gpu
"""

import pytest
import torch

from stages.models.devices import default_device, place
from stages.models.generation import Sampling, sample_ids
from tests.trainers.tiny import METHODS, lines, method_trainer, tiny_llama, tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def trainer(method, folder, **arguments):
    # On an accelerator that can, the classes compute in bfloat16 unless told otherwise.
    settings = {"rows": METHODS[method].encoded(24), "learning_rate": 1e-3, "max_steps": 6, "bf16": False}
    return method_trainer(method, folder, **{**settings, **arguments})


def losses(method, folder, **arguments):
    made = trainer(method, folder, **arguments)
    made.train()
    return [line["loss"] for line in lines(made)]


@EACH_METHOD
def test_losses_are_those_of_the_cpu(tmp_path, method):
    on_cpu = losses(method, tmp_path)

    assert losses(method, tmp_path, use_cpu=False) == pytest.approx(on_cpu, rel=1e-4, abs=1e-5)
    assert len(set(on_cpu)) > 1


@EACH_METHOD
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(tmp_path, method, precision):
    full = losses(method, tmp_path, use_cpu=False)

    assert losses(method, tmp_path, use_cpu=False, **{precision: True}) == pytest.approx(full, rel=3e-2)


@EACH_METHOD
def test_a_reference_of_a_live_model_is_that_of_its_column(tmp_path, method):
    rows = METHODS[method].encoded(24)
    rows = rows.remove_columns([name for name in rows.column_names if name.startswith("reference")])
    live = losses(method, tmp_path, rows=rows, use_cpu=False)

    column = losses(method, tmp_path, rows=rows, use_cpu=False, precompute_ref_log_probs=True)

    assert column == pytest.approx(live, rel=1e-4, abs=1e-5)


def test_it_goes_on_from_a_checkpoint_to_the_same_losses(tmp_path):
    settings = {"use_cpu": False, "save_strategy": "steps", "save_steps": 3}
    straight = losses("bco", tmp_path, **settings)

    resumed = trainer("bco", tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    assert [line["loss"] for line in lines(resumed)] == pytest.approx(straight, rel=1e-4, abs=1e-5)


def test_samples_are_those_of_the_cpu():
    prompts, sampling = [[5, 6, 7], [8, 9], [10]], Sampling(4, 8, batch_size=4)
    on_cpu = sample_ids(tiny_llama(), tiny_tokenizer(), prompts, sampling=sampling)

    on_device = sample_ids(place(tiny_llama(), default_device()), tiny_tokenizer(), prompts, sampling=sampling)

    assert on_device == on_cpu
