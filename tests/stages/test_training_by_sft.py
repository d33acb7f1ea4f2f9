"""Stage `training` by SFT: from demonstrations to a model that can be a base model, the same bytes after a kill."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from stages.contracts.files import files_below
from stages.models.loading import load_causal_lm
from stages.models.pointer import fingerprint, read_pointer, write_pointer
from stages.models.tokenizers import load_tokenizer
from stages.tokenization import TokenizationParams
from stages.tokenization import run as tokenize
from stages.trainers.core.sections import LoraParams
from stages.trainers.sft.section import SFTTrainingParams
from stages.training import run
from tests.stages.feedback import write_tokens
from tests.stages.own_logs import normalize
from tests.stages.training_runs import digests, kill_when, outputs, rows_of, write_base_model
from tests.trainers.tiny import WORDS

PARAMS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 8,
    "logging_steps": 3,
    "save_steps": 2,
    "disable_dropout": False,
}


class Demonstrations(NamedTuple):
    """A log that went through the stages before training."""

    inputs: dict[str, Any]
    """Arguments of `run` that read."""
    rejects: dict[str, int]
    """Lines that normalization refused, by reason."""


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory, base_model):
    """Twenty-two good lines, and three that aren't."""
    lines = [
        json.dumps(
            {
                "prompt": [{"role": "user", "content": f"what is {word}"}],
                "completion": [{"role": "assistant", "content": f"{word} is {WORDS[index % 3 + 5]}"}],
            }
        )
        for index, word in enumerate(WORDS)
    ]
    folder = tmp_path_factory.mktemp("data")
    log = folder / "demonstrations.jsonl"
    log.write_text("\n".join([*lines, '{"prompt": "what"}', '{"prompt": "a", "completion": ""}', "{"]) + "\n")
    return through_the_stages_before(log, base_model, folder)


def through_the_stages_before(log: Path, base_model: Path, folder: Path) -> Demonstrations:
    normalize(log, base_model, folder, test_share=0.3)
    tokenize(
        completions=folder / "completions",
        base_model=base_model,
        tokens=folder / "tokens",
        rejects=folder / "token_rejects",
        metrics=folder / "tokenization.json",
        memo=folder / "memo",
        params=TokenizationParams(),
    )
    rows = rows_of("demonstrations", folder / "rows", tokens=folder / "tokens")
    inputs = {"method": "sft", "base_model": base_model, "tokens": folder / "tokens", "rows": rows}
    return Demonstrations(inputs, json.loads((folder / "normalization.json").read_text())["reject_reasons"])


def test_learns_a_log_of_demonstrations_and_lowers_the_held_out_loss(demonstrations, tmp_path):
    written = outputs(tmp_path)

    run(**demonstrations.inputs, **written, params=SFTTrainingParams(**PARAMS))

    metrics = json.loads(written["metrics"].read_text())
    assert metrics["rows"]["train"] + metrics["rows"]["held_out"] == len(set(WORDS)) == metrics["rows"]["train"] + 6
    assert metrics["rows"]["undesired"] == 0
    assert demonstrations.rejects == {"empty_completion": 1, "json_invalid": 1}
    assert metrics["held_out"]["after"] < metrics["held_out"]["before"]
    assert metrics["last"]["loss"] < metrics["first"]["loss"]
    assert written["plots"].read_text().startswith("step,epoch,loss,")
    assert "Supervised fine-tuning" in (written["model"] / "README.md").read_text()


def test_what_it_writes_is_a_base_model(base_model, demonstrations, tmp_path):
    written = outputs(tmp_path)

    run(**demonstrations.inputs, **written, params=SFTTrainingParams(**PARAMS))

    pointer = read_pointer(written["model"])
    assert pointer.fingerprint == fingerprint(written["model"]) != fingerprint(base_model)
    assert pointer.pad_token == load_tokenizer(written["model"]).pad_token
    again = outputs(tmp_path / "again")
    start = {**demonstrations.inputs, "base_model": written["model"]}
    run(**start, **again, params=SFTTrainingParams(**PARAMS))
    first, second = (json.loads(paths["metrics"].read_text())["held_out"] for paths in (written, again))
    assert second["before"] == pytest.approx(first["after"], rel=1e-6)


def test_learns_desired_rows_and_demonstrations_of_an_artifact(base_model, tmp_path):
    tokens = write_tokens(
        tmp_path / "tokens",
        [
            {
                "label": label,
                "split": "test" if i % 4 == 0 else "train",
                "input_ids": [1, 6 + i, 8, 9, 2],
                "prompt_length": 2,
            }
            for i, label in enumerate([True, False, None, True] * 3)
        ],
    )

    rows = rows_of("demonstrations", tmp_path / "rows", tokens=tokens)

    run(
        method="sft",
        base_model=base_model,
        tokens=tokens,
        rows=rows,
        **outputs(tmp_path),
        params=SFTTrainingParams(**PARAMS),
    )

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["rows"] == {"undesired": 3, "train": 6, "held_out": 3}
    assert metrics["steps"] == 6


@pytest.mark.parametrize("merges", [True, False])
def test_an_adapter_is_merged_or_kept(base_model, demonstrations, tmp_path, merges):
    written = outputs(tmp_path)
    params = SFTTrainingParams(**PARAMS, lora=LoraParams(r=2), merge_lora=merges)

    run(**demonstrations.inputs, **written, params=params)

    model = load_causal_lm(written["model"])
    assert (written["model"] / "reference.json").exists() is merges
    assert hasattr(model, "peft_config") is not merges
    ids = torch.tensor([[1, 6, 7, 8]])
    assert not torch.equal(model(input_ids=ids).logits, load_causal_lm(base_model)(input_ids=ids).logits)


def test_gives_the_same_bytes_twice_and_no_pickle_clock_or_path(demonstrations, tmp_path):
    for name in ("one", "two"):
        params = SFTTrainingParams(**PARAMS, neftune_noise_alpha=5.0)
        run(**demonstrations.inputs, **outputs(tmp_path / name), params=params)

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for file in files_below(outputs(tmp_path / "one")["model"]):
        assert file.suffix in {".json", ".safetensors", ".md", ".jinja"}
        if file.name != "plumbline.json":
            assert str(tmp_path.parent).encode() not in file.read_bytes()


def test_an_adapter_is_not_merged_into_weights_of_few_bits(demonstrations, base_model, tmp_path):
    # The pointer alone says so, for nothing is loaded before.
    few = tmp_path / "few"
    shutil.copytree(base_model, few)
    write_pointer(few, read_pointer(few).model_copy(update={"quantisation": "4bit"}))
    params = SFTTrainingParams(**PARAMS, lora=LoraParams(r=2, alpha=2))

    with pytest.raises(ValueError, match=r"sft\.merge_lora: .*found one of 4bit.*set merge_lora: false"):
        run(**{**demonstrations.inputs, "base_model": few}, **outputs(tmp_path), params=params)


@pytest.mark.parametrize("packing", ["apart", "wrapped"])
def test_packed_demonstrations_are_learned(demonstrations, tmp_path, packing):
    written = outputs(tmp_path)
    params = SFTTrainingParams(**{**PARAMS, "packing": packing, "seq_length": 32})

    run(**demonstrations.inputs, **written, params=params)

    found = json.loads(written["metrics"].read_text())["held_out"]
    assert found["after"] < found["before"]


@pytest.mark.slow
@pytest.mark.usefixtures("single_thread")
@pytest.mark.long
def test_goes_on_after_kill_9_to_the_same_bytes(demonstrations, tmp_path):
    params = {**PARAMS, "num_train_epochs": 12}
    run(**demonstrations.inputs, **outputs(tmp_path / "whole"), params=SFTTrainingParams(**params))
    killed = outputs(tmp_path / "killed")

    status = kill_when(
        killed["scratch"] / "checkpoint-4",
        "stages.training",
        "stages.trainers.sft.section:SFTTrainingParams",
        {**demonstrations.inputs, **killed},
        params,
    )

    assert status == -signal.SIGKILL
    assert not killed["metrics"].exists()
    run(**demonstrations.inputs, **killed, params=SFTTrainingParams(**params))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
