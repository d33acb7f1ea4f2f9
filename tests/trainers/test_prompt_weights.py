"""UDM inside a trainer: the documented embedding function, and the peer's defects as they should be."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from stages.trainers.bco.trainer import BCOTrainer
from tests.trainers.tiny import (
    bco_config,
    bco_trainer,
    embed,
    encoded_rows,
    raw_rows,
    shifted_rows,
    tiny_llama,
    tiny_tokenizer,
)


def made(folder, rows=None, **arguments):
    defaults = {"embedding_func": embed, "embedding_tokenizer": tiny_tokenizer()}
    return bco_trainer(folder, rows=shifted_rows() if rows is None else rows, **{**defaults, **arguments})


def test_undesired_rows_on_desired_prompts_weigh_more(tmp_path):
    rows = made(tmp_path).train_dataset

    weights = np.array(rows["undesired_weight"])
    is_sea = np.array(["sea" in prompt for prompt in rows["prompt"]])
    assert weights[is_sea].mean() > 1.5
    assert weights[~is_sea].mean() < 0.7
    assert 0.5 <= weights.min() <= weights.max() <= 10.0


def test_the_weights_are_clamped_as_asked_for(tmp_path):
    weights = made(tmp_path, min_density_ratio=0.9, max_density_ratio=1.1).train_dataset["undesired_weight"]

    assert {round(weight, 6) for weight in weights} == {0.9, 1.1}


def test_it_trains_and_evaluates_with_weights(tmp_path):
    trainer = made(tmp_path, eval_dataset=shifted_rows(10), max_steps=2)

    trainer.train()
    metrics = trainer.evaluate(shifted_rows(6))

    assert "undesired_weight" in trainer.eval_dataset.column_names
    assert metrics["eval_loss"] > 0


def test_rows_that_are_encoded_are_embedded_by_the_text_of_their_ids(tmp_path):
    trainer = made(tmp_path, rows=encoded_rows(12))

    assert len(set(trainer.train_dataset["undesired_weight"][:])) > 1


def test_b11_b13_an_embedding_is_the_same_in_any_company_and_for_any_ids(tmp_path):
    # Pad ids of the policy's tokenizer mean nothing to the embedding's, and no position is padded at all.
    seen = []

    def watched(input_ids, attention_mask):
        seen.append((input_ids, attention_mask))
        return embed(input_ids, attention_mask)

    weights = made(tmp_path, embedding_func=watched, padding_value=7, per_device_train_batch_size=8).prompt_weights
    prompts = ["a sea", "what is the sky blue", "red", "a sea"]
    together = weights.embed(prompts)

    assert np.array_equal(together, np.concatenate([weights.embed([prompt]) for prompt in prompts]))
    assert all(mask.all() and len(ids) <= 8 for ids, mask in seen)


def test_b12_a_row_is_kept_whatever_its_embedding_is(tmp_path):
    zeros = made(tmp_path, embedding_func=lambda input_ids, attention_mask: torch.zeros(len(input_ids), 4))

    # nothing to tell prompts apart by: probability one half, odds 1
    assert zeros.train_dataset["undesired_weight"][:] == pytest.approx([1.0] * 40, rel=1e-4)


@pytest.mark.parametrize("missing", ["embedding_func", "embedding_tokenizer"])
def test_b13_one_of_function_and_tokenizer_alone_is_refused_early(tmp_path, missing):
    with pytest.raises(ValueError, match="expected both embedding_func and embedding_tokenizer"):
        made(tmp_path, **{missing: None})


def test_b13_rows_of_one_class_are_refused_before_anything_is_fitted(tmp_path):
    with pytest.raises(ValueError, match="expected desired and undesired rows"):
        made(tmp_path, rows=shifted_rows().filter(lambda row: row["label"]))


def test_the_sample_is_bounded_and_drawn_without_replacement(tmp_path):
    sizes = []

    def watched(input_ids, attention_mask):
        sizes.append(len(input_ids))
        return embed(input_ids, attention_mask)

    trainer = made(tmp_path, embedding_func=watched, prompt_sample_size=5)

    fitted_on = sum(sizes) - len(set(trainer.train_dataset["prompt"]))
    assert 0 < fitted_on <= 10


def test_a_dataset_to_evaluate_on_needs_a_classifier(tmp_path):
    with pytest.raises(ValueError, match="expected a train_dataset to fit the classifier"):
        BCOTrainer(
            tiny_llama(),
            args=bco_config(tmp_path),
            eval_dataset=Dataset.from_list(raw_rows()),
            processing_class=tiny_tokenizer(),
            embedding_func=embed,
            embedding_tokenizer=tiny_tokenizer(),
        )
