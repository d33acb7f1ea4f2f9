"""Models and tokenizers read from what names them: artifacts, trained folders, plain folders, repositories."""

import json
import shutil
import warnings

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from stages.models.loading import check_causal_lm, load_causal_lm
from stages.models.pointer import (
    ModelPointer,
    fingerprint,
    read_pointer,
    tokenizer_fingerprint,
    weights_folder,
    write_lineage,
)
from stages.models.tokenizers import load_tokenizer
from tests.models.models_on_disk import input_ids, make_tokenizer, write_local_pointer, write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder):
    write_model(folder, seed=1)


def edit_json(file, **changes):
    found = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def test_a_plain_folder_gives_its_model_in_evaluation_mode(tmp_path):
    saved = write_model(tmp_path / "model")

    loaded = load_causal_lm(tmp_path / "model")

    assert not loaded.training
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded(input_ids()).logits, saved(input_ids()).logits, rtol=0, atol=0)


def test_a_pointer_gives_the_model_that_it_names_in_its_type(tmp_path, folder):
    base = write_local_pointer(tmp_path / "base", folder, dtype="bfloat16")

    assert load_causal_lm(base).dtype == torch.bfloat16
    assert load_causal_lm(base, dtype="float32").dtype == torch.float32
    assert load_tokenizer(base).get_vocab() == load_tokenizer(folder).get_vocab()


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_a_model_that_changed_since_it_was_named_is_refused(tmp_path, folder, load):
    base = write_local_pointer(tmp_path / "base", folder)
    change_weights(folder)

    with pytest.raises(ValueError, match=r"found other weights or another tokenizer; run `dvc repro base_model`"):
        load(base)


def test_a_tokenizer_that_changed_since_it_was_named_is_refused(tmp_path, folder):
    base = write_local_pointer(tmp_path / "base", folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    with pytest.raises(ValueError, match="another tokenizer"):
        load_causal_lm(base)


def test_fingerprints_tell_weights_and_tokenizer_apart(folder):
    model, tokenizer = fingerprint(folder), tokenizer_fingerprint(folder)
    (folder / "README.md").write_text("no part of the model")
    assert (fingerprint(folder), tokenizer_fingerprint(folder)) == (model, tokenizer)

    change_weights(folder)
    assert fingerprint(folder) != model
    assert tokenizer_fingerprint(folder) == tokenizer


def test_the_fingerprint_of_an_artifact_is_what_its_pointer_says(tmp_path, folder):
    base = write_local_pointer(tmp_path / "base", folder)

    assert fingerprint(base) == fingerprint(folder)
    assert tokenizer_fingerprint(base) == tokenizer_fingerprint(folder)


def test_code_counts_only_where_it_runs(folder):
    before = fingerprint(folder)
    (folder / "modeling.py").write_text("pass")

    assert fingerprint(folder) == before
    assert fingerprint(folder, trust_remote_code=True) != before


def test_a_tokenizer_without_pad_token_pads_with_its_end(folder):
    edit_json(folder / "tokenizer_config.json", pad_token=None)

    tokenizer = load_tokenizer(folder)

    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_tokenizer_with_neither_pad_nor_end_is_refused(folder):
    edit_json(folder / "tokenizer_config.json", pad_token=None, eos_token=None)

    with pytest.raises(ValueError, match="expected a tokenizer with a pad token or an end of sequence, found neither"):
        load_tokenizer(folder)


def test_a_missing_tokenizer_is_an_error_with_the_remedy(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink()

    with pytest.raises(ValueError, match="expected a tokenizer beside the weights, found none"):
        load_tokenizer(folder)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with a model, found none"):
        load_causal_lm(tmp_path / "nowhere")


@pytest.mark.parametrize(("file", "found"), [("pytorch_model.bin", "pytorch_model.bin"), (None, "no weights")])
def test_weights_other_than_safetensors_are_never_read(folder, file, found):
    (folder / "model.safetensors").unlink()
    if file is not None:
        (folder / file).write_bytes(b"a pickle could run code")

    with pytest.raises(
        ValueError, match=rf"expected weights as \*\.safetensors, found {found}; `python -m pipelines convert"
    ):
        load_causal_lm(folder)


def test_damaged_weights_are_one_sentence(folder):
    (folder / "config.json").write_text("{")

    with pytest.raises(ValueError, match="configuration can't be read"):
        load_causal_lm(folder)


def test_an_encoder_decoder_is_refused(folder):
    edit_json(folder / "config.json", is_encoder_decoder=True)

    with pytest.raises(ValueError, match="expected a causal language model, found an encoder-decoder"):
        load_causal_lm(folder)


def test_code_that_a_model_brings_does_not_run(tmp_path, folder):
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\n")
    edit_json(folder / "config.json", model_type="unheard_of", auto_map={"AutoConfig": "evil.Config"})

    with pytest.raises(ValueError, match="brings code of its own, which is not run"):
        load_causal_lm(folder)
    assert not canary.exists()


def test_more_tokens_than_embeddings_are_refused(folder):
    check_causal_lm(folder, load_tokenizer(folder))
    edit_json(folder / "config.json", vocab_size=100)

    with pytest.raises(ValueError, match=r"expected an embedding for each of the tokenizer's \d+ tokens, found 100"):
        check_causal_lm(folder, load_tokenizer(folder))


@pytest.fixture
def adapter(tmp_path, folder):
    """An adapter on an artifact that names the model, with random weights instead of zeros."""
    base = write_local_pointer(tmp_path / "base", folder)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        get_peft_model(load_causal_lm(base), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_laid_on_the_base_that_its_lineage_names(tmp_path, folder, adapter):
    write_lineage(adapter, tmp_path / "base", method="bco")

    model = load_causal_lm(adapter)

    assert not torch.equal(model(input_ids()).logits, load_causal_lm(folder)(input_ids()).logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_tokenizer(adapter).get_vocab() == make_tokenizer().get_vocab()
    assert json.loads((adapter / "plumbline.json").read_text())["base_model"]["path"] == "../base"


def test_a_lineage_stays_true_when_base_and_adapter_move_together(tmp_path, adapter):
    write_lineage(adapter, tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)

    assert load_causal_lm(tmp_path / "elsewhere" / "adapter").num_parameters() > 0


def test_an_adapter_counts_its_base_in_its_fingerprint(tmp_path, folder, adapter):
    write_lineage(adapter, folder)
    before = fingerprint(adapter)
    change_weights(folder)
    write_lineage(adapter, folder)

    assert fingerprint(adapter) != before


def test_an_adapter_whose_base_changed_is_refused(tmp_path, folder, adapter):
    write_lineage(adapter, folder)
    change_weights(folder)

    with pytest.raises(ValueError, match="the adapter was trained on another model"):
        load_causal_lm(adapter)


@pytest.mark.parametrize("damaged", ["a bit of the weights", "the configuration", "the lineage"])
def test_a_model_that_its_training_did_not_write_so_is_refused(tmp_path, folder, damaged):
    write_lineage(folder, folder, method="bco")
    assert load_causal_lm(folder).num_parameters() > 0
    name = {"the configuration": "config.json", "the lineage": "plumbline.json"}.get(damaged, "model.safetensors")
    content = bytearray((folder / name).read_bytes())
    content[-1 if damaged != "the lineage" else 0] ^= 1
    (folder / name).write_bytes(content)

    with pytest.raises(ValueError, match=r"(expected the weights that its training wrote|expected the JSON of a tra)"):
        load_causal_lm(folder)


def test_an_adapter_without_lineage_is_refused(adapter):
    with pytest.raises(ValueError, match=r"expected an adapter with a plumbline\.json that names its base"):
        load_causal_lm(adapter)


def test_an_adapter_is_no_base_model(tmp_path, folder, adapter):
    with pytest.raises(ValueError, match="expected a whole model, found an adapter"):
        check_causal_lm(adapter, load_tokenizer(folder))


@pytest.fixture
def repository(tmp_path, monkeypatch, folder):
    """A repository in this machine's cache, laid out as the hub's client does, and no network."""
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_repository_is_taken_from_the_cache(tmp_path, folder, repository):
    base = write_local_pointer(
        tmp_path / "base", folder, source="hub", path=None, repository="owner/name", revision=COMMIT
    )

    assert weights_folder(base) == repository
    assert load_causal_lm(base).num_parameters() == load_causal_lm(folder).num_parameters()


def test_a_repository_with_other_files_than_named_is_refused(tmp_path, folder, repository):
    base = write_local_pointer(
        tmp_path / "base", folder, source="hub", path=None, repository="owner/name", revision=COMMIT
    )
    change_weights(repository)

    with pytest.raises(ValueError, match=r"owner/name@0123.*found other files"):
        load_causal_lm(base)


def test_a_repository_that_cannot_be_had_is_one_sentence(tmp_path, folder, repository):
    base = write_local_pointer(
        tmp_path / "base", folder, source="hub", path=None, repository="owner/other", revision=COMMIT
    )

    with pytest.raises(ValueError, match="owner/other@0123.*can't be downloaded"):
        load_causal_lm(base)


def test_no_pointer_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"expected reference\.json, found none; run `dvc repro base_model`"):
        read_pointer(tmp_path)


def test_a_pointer_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "reference.json").write_text("{}")

    with pytest.raises(ValueError, match="expected a pointer to a model"):
        read_pointer(tmp_path)


def test_a_pointer_must_say_where_its_model_is():
    with pytest.raises(ValueError, match="a pointer of source hub needs repository and revision"):
        ModelPointer(source="hub", fingerprint="", tokenizer_fingerprint="", pad_token="", pad_token_is_eos=False)
