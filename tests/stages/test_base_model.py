"""Stage `base_model`: its three sources, and what it refuses."""

import json
import shutil

import pytest
from huggingface_hub import constants

from stages.base_model import BaseModelParams, run
from stages.contracts.files import tree_digest
from stages.demo_feedback import DemoFeedbackParams
from stages.demo_feedback import run as write_demo
from stages.models.loading import load_causal_lm
from stages.models.pointer import ModelPointer, fingerprint, read_pointer, tokenizer_fingerprint, write_pointer
from stages.models.tokenizers import load_tokenizer
from tests.models.models_on_disk import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "num_epochs": 1}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(
        feedback=folder / "feedback.jsonl",
        demonstrations=folder / "demonstrations.jsonl",
        truth=folder / "truth.json",
        params=DemoFeedbackParams(rows=1, demonstrations=200),
    )
    return folder / "demonstrations.jsonl"


def test_scratch_makes_a_model_that_loads(tmp_path, demonstrations):
    run(source=demonstrations, base_model=tmp_path / "base", params=BaseModelParams(scratch=SMALL))

    pointer = read_pointer(tmp_path / "base")
    assert (pointer.source, pointer.path, pointer.pad_token_is_eos) == ("scratch", None, False)
    assert load_causal_lm(tmp_path / "base").config.hidden_size == 16
    assert load_tokenizer(tmp_path / "base").chat_template is not None


def test_scratch_gives_the_same_bytes_for_the_same_seed_wherever_it_writes(tmp_path, demonstrations):
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        run(source=demonstrations, base_model=tmp_path / name, params=BaseModelParams(scratch=SMALL, seed=seed))

    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b") != tree_digest(tmp_path / "c")


def test_local_names_the_folder_and_copies_nothing(tmp_path):
    write_model(tmp_path / "model")

    run(source=tmp_path / "model", base_model=tmp_path / "base", params=BaseModelParams(source="local"))

    assert [file.name for file in (tmp_path / "base").iterdir()] == ["reference.json"]
    assert read_pointer(tmp_path / "base").path == str(tmp_path / "model")
    assert load_causal_lm(tmp_path / "base").num_parameters() > 0


def test_a_tokenizer_without_pad_token_is_noted(tmp_path):
    write_model(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["pad_token"]
    config.write_text(json.dumps(settings))

    run(source=tmp_path / "model", base_model=tmp_path / "base", params=BaseModelParams(source="local"))

    pointer = read_pointer(tmp_path / "base")
    assert (pointer.pad_token, pointer.pad_token_is_eos) == ("<|end|>", True)


def test_hub_names_repository_and_commit(tmp_path, monkeypatch):
    write_model(tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    run(
        base_model=tmp_path / "base",
        params=BaseModelParams(source="hub", repository="owner/name", revision=COMMIT),
    )

    pointer = read_pointer(tmp_path / "base")
    assert (pointer.repository, pointer.revision, pointer.path) == ("owner/name", COMMIT, None)
    assert [file.name for file in (tmp_path / "base").iterdir()] == ["reference.json"]
    assert load_causal_lm(tmp_path / "base").num_parameters() > 0


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:8], COMMIT.upper()])
def test_a_revision_that_could_move_is_refused(tmp_path, revision):
    params = BaseModelParams(source="hub", repository="owner/name", revision=revision)

    with pytest.raises(ValueError, match=r"base_model\.revision: expected a commit of 40 hexadecimal digits, found"):
        run(base_model=tmp_path / "base", params=params)


def test_a_hub_model_needs_a_repository(tmp_path):
    with pytest.raises(ValueError, match=r"expected base_model\.repository, found none"):
        run(base_model=tmp_path / "base", params=BaseModelParams(source="hub", revision=COMMIT))


def test_a_local_model_needs_a_path(tmp_path):
    with pytest.raises(ValueError, match=r"expected inputs\.base_model in params\.yaml, found none"):
        run(base_model=tmp_path / "base", params=BaseModelParams(source="local"))


def test_scratch_from_a_model_folder_names_the_right_source(tmp_path):
    write_model(tmp_path / "model")

    with pytest.raises(ValueError, match=r"set base_model\.source to local"):
        run(source=tmp_path / "model", base_model=tmp_path / "base", params=BaseModelParams())


def test_a_model_folder_without_safetensors_is_refused(tmp_path):
    write_model(tmp_path / "model")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "pytorch_model.bin")

    with pytest.raises(ValueError, match=r"expected weights as \*\.safetensors, found pytorch_model\.bin"):
        run(source=tmp_path / "model", base_model=tmp_path / "base", params=BaseModelParams(source="local"))


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_model_cant_let_its_own_code_run(tmp_path, is_apart):
    model = tmp_path / "model"
    write_model(model)
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    pointer = ModelPointer(
        source="local" if is_apart else "scratch",
        path=str(model) if is_apart else None,
        fingerprint=fingerprint(model, trust_remote_code=True),
        tokenizer_fingerprint=tokenizer_fingerprint(model),
        trust_remote_code=True,
        pad_token="<pad>",
        pad_token_is_eos=False,
    )
    write_pointer(model, pointer)

    with pytest.raises(ValueError, match=r"reference\.json lets code run.*base_model\.trust_remote_code is false"):
        run(source=model, base_model=tmp_path / "base", params=BaseModelParams(source="local"))

    assert not (tmp_path / "ran").exists()
