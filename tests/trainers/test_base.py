"""What all trainers share that follow the loop of transformers."""

import logging

import torch

from stages.trainers.bco.trainer import BCOTrainer
from stages.trainers.core import base
from tests.trainers.tiny import bco_config, bco_trainer, encoded_rows, tiny_llama, tiny_tokenizer


def test_one_process_uses_one_of_several_devices_and_says_so(tmp_path, caplog):
    args = bco_config(tmp_path)
    assert args.device.type == "cpu"
    args._n_gpu = 2  # as on a machine with two

    with caplog.at_level(logging.WARNING, "stages.trainers.core.base"):
        trainer = BCOTrainer(tiny_llama(), None, args, encoded_rows(), processing_class=tiny_tokenizer())
    trainer.train()

    assert trainer.args.n_gpu == 1
    assert "one of 2 devices is used" in caplog.text
    assert "PLUMBLINE_LAUNCH" in caplog.text
    assert trainer.state.train_batch_size == 4


def test_rows_that_count_are_told_from_batches_as_they_are_after_memory_ran_out(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        base, "mark_own_rows", lambda batch, number, *_, **__: sizes.append((len(batch["label"]), number))
    )
    trainer = bco_trainer(tmp_path, auto_find_batch_size=True, max_steps=2)
    plain = trainer.compute_loss

    def on_a_small_device(model, inputs, *arguments, **settings):
        if len(inputs["label"]) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(model, inputs, *arguments, **settings)

    monkeypatch.setattr(trainer, "compute_loss", on_a_small_device)

    trainer.train()

    assert sizes[0] == (4, 4)
    assert sizes[-1][0] < 4
    assert all(found == number for found, number in sizes)
