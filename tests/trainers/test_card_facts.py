"""What a trainer's page says about where its model came from, and what a user adds to it."""

import pytest
import yaml

from stages.trainers.core.model_card import card_of, public_name
from tests.trainers.tiny import bco_trainer, tiny_llama


def front_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_tags_license_language_and_dataset_stand_in_the_front_matter(tmp_path):
    trainer = bco_trainer(tmp_path)

    card = card_of(
        trainer,
        None,
        model_name="Polite",
        tags=["chat", "bco"],
        language="en",
        license="mit",
        dataset_name=["org/data"],
    )

    assert front_of(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "bco", "chat"],
        "language": "en",
        "license": "mit",
        "datasets": ["org/data"],
    }
    assert "# Polite\n" in card
    assert "Model trained by Binary Classifier Optimization (BCO). The method" in card
    assert front_of(card_of(trainer, None, tags="chat"))["tags"] == ["plumbline", "bco", "chat"]


@pytest.mark.parametrize("name", ["org/model-1.5B", "gpt2"])
def test_a_model_that_a_repository_gave_names_it(tmp_path, name):
    model = tiny_llama()
    model.config.name_or_path = name

    assert front_of(card_of(bco_trainer(tmp_path, model=model), None))["base_model"] == name


@pytest.mark.parametrize("name", ["", "/models/base", "./base", "folder/base", "a/b/c"])
def test_a_folder_and_a_model_made_here_have_no_public_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "base").mkdir(parents=True)
    model = tiny_llama()
    model.config.name_or_path = name

    assert public_name(model) is None
