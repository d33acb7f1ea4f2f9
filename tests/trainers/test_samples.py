"""Completions sampled while a trainer evaluates: where the table goes, and which models can be sampled."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import CometCallback, MLflowCallback, WandbCallback

from stages.models.generation import Sampling, sample_ids
from stages.trainers.bco.trainer import BCOTrainer
from stages.trainers.core.samples import COLUMNS
from tests.trainers.tiny import bco_config, bco_trainer, raw_rows, tiny_t5, tiny_tokenizer

ROWS = Dataset.from_list(raw_rows(6))


def made(folder, **arguments):
    """A trainer that evaluates and samples behind its one step; two of the six rows are undesired."""
    settings = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_length": 16}
    return bco_trainer(folder, rows=ROWS, eval_dataset=ROWS, generate_during_eval=True, **{**settings, **arguments})


def in_files(folder):
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*")}


def test_tensorboard_gets_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))

    made(tmp_path, report_to="tensorboard").train()

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    (event,) = events.Tensors("eval_samples/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| prompt | policy | reference |", "| --- | --- | --- |"]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| what is what", "| what is sky"]
    assert event.step == 1
    assert not (tmp_path / "samples").exists()


def test_dvclive_gets_a_file_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVCLIVE_SAVE_DVC_EXP", "false")
    from dvclive import Live
    from transformers.integrations.integration_utils import DVCLiveCallback

    live = Live(str(tmp_path / "live"), save_dvc_exp=False, dvcyaml=None)
    made(tmp_path / "out", callbacks=[DVCLiveCallback(live=live)]).train()

    assert [row["prompt"] for row in in_files(tmp_path / "live" / "samples")["eval-1.jsonl"]] == [
        "what is what",
        "what is sky",
    ]
    assert not (tmp_path / "out" / "samples").exists()


def recorded(calls, name, result=None):
    return lambda *given, **named: calls.append((name, given, named)) or result


def stand_ins(calls, *, is_running):
    """The part of each tracker's package that is called; none of them is installed here."""
    run = SimpleNamespace(log_table=recorded(calls, "comet_ml"))
    return {
        "wandb": SimpleNamespace(
            run=is_running or None,
            log=recorded(calls, "wandb"),
            Table=lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data],
        ),
        "comet_ml": SimpleNamespace(get_running_experiment=lambda: run if is_running else None),
        "mlflow": SimpleNamespace(
            active_run=lambda: is_running or None, log_table=recorded(calls, "mlflow"),
        ),
    }  # fmt: skip


KINDS = {"wandb": WandbCallback, "comet_ml": CometCallback, "mlflow": MLflowCallback}


@pytest.mark.parametrize("tracker", KINDS)
@pytest.mark.parametrize("is_running", [True, False])
def test_other_trackers_get_a_table_if_their_run_has_begun(tmp_path, monkeypatch, tracker, is_running):
    calls = []
    monkeypatch.setitem(sys.modules, tracker, stand_ins(calls, is_running=is_running)[tracker])
    silent = {name: lambda *_, **__: None for name in dir(KINDS[tracker]) if name.startswith("on_")}
    callback = type(
        "Silent", (KINDS[tracker],), {"__init__": lambda self: None, "__del__": lambda self: None, **silent}
    )

    made(tmp_path, callbacks=[callback()]).evaluate()

    assert (tmp_path / "samples").exists() != is_running
    assert len(calls) == is_running
    if is_running:
        assert all(text in str(calls) for text in ("what is what", *(COLUMNS[1:] if tracker != "wandb" else ())))


def test_a_tracker_that_has_not_begun_leaves_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = made(tmp_path, report_to="tensorboard")

    trainer.evaluate()

    assert list(in_files(tmp_path / "samples")) == ["eval-0.jsonl"]


def test_each_evaluation_set_has_its_own_table(tmp_path):
    trainer = made(tmp_path, eval_strategy="no")

    trainer.evaluate({"first": ROWS, "second": ROWS})

    assert set(in_files(tmp_path / "samples")) == {"eval_first-0.jsonl", "eval_second-0.jsonl"}


def test_an_adapter_is_on_for_the_policy_and_off_for_the_reference(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = made(tmp_path, peft_config=adapter, eval_strategy="no")

    trainer.evaluate()
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(3.0)
    (first,) = in_files(tmp_path / "samples").values()
    trainer.evaluate()
    (second,) = in_files(tmp_path / "samples").values()

    assert [row["policy"] for row in first] == [row["reference"] for row in first]
    assert [row["reference"] for row in second] == [row["reference"] for row in first]
    assert [row["policy"] for row in second] != [row["reference"] for row in second]


def test_an_encoder_decoder_is_sampled_as_alone_as_in_company(tmp_path):
    trainer = made(tmp_path, model=tiny_t5(), eval_strategy="no", max_completion_length=9)
    trainer.evaluate()
    (together,) = in_files(tmp_path / "samples").values()

    trainer.evaluate(ROWS.select([3]))
    (alone,) = in_files(tmp_path / "samples").values()

    assert [row["prompt"] for row in together] == ["what is what", "what is sky"]
    assert alone == together[1:]
    assert all(len(row["policy"].split()) <= 9 for row in together)
    assert together[0]["policy"] != together[1]["policy"]


def test_without_chance_an_encoder_decoder_says_what_its_own_search_finds():
    model = tiny_t5()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0)
    prompts = [[5, 6, 7, 8], [9, 10], [11]]
    sampling = Sampling(num_samples=1, max_new_tokens=6, temperature=0.0, batch_size=3)

    found = sample_ids(model, tiny_tokenizer(), prompts, sampling=sampling)

    for prompt, (ids,) in zip(prompts, found, strict=True):
        (expected,) = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False).tolist()
        assert ids == expected[1 : 1 + len(ids)]
    assert len({tuple(ids) for (ids,) in found}) == 3


def test_sampling_without_a_tokenizer_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="expected processing_class, a tokenizer, to sample"):
        BCOTrainer(str(tmp_path / "nowhere"), args=bco_config(tmp_path, generate_during_eval=True, padding_value=0))
