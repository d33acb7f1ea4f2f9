"""What all trainers share that follow the loop of transformers."""

import logging

from stages.trainers.bco import BCOTrainer
from tests.trainers.tiny import bco_config, encoded_rows, tiny_llama, tiny_tokenizer


def test_one_process_uses_one_of_several_devices_and_says_so(tmp_path, caplog):
    args = bco_config(tmp_path)
    assert args.device.type == "cpu"
    args._n_gpu = 2  # as on a machine with two

    with caplog.at_level(logging.WARNING, "stages.trainers.base"):
        trainer = BCOTrainer(tiny_llama(), None, args, encoded_rows(), processing_class=tiny_tokenizer())
    trainer.train()

    assert trainer.args.n_gpu == 1
    assert "one of 2 devices is used" in caplog.text
    assert "PLUMBLINE_LAUNCH" in caplog.text
    assert trainer.state.train_batch_size == 4
