"""The page that goes with a trained model."""

import yaml

from stages.trainers.core.model_card import model_card, rows_on_card

SETTINGS = {
    "method": "bco",
    "title": "Binary Classifier Optimization",
    "paper": "https://a.b",
    "settings": {"beta": 0.1},
}


def test_its_front_matter_says_what_hubs_ask_for():
    _, front, body = model_card(**SETTINGS, base_model="org/model", is_adapter=True).split("---\n", 2)

    assert yaml.safe_load(front) == {
        "base_model": "org/model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "bco"],
    }
    assert "# Adapter trained by Binary Classifier Optimization" in body
    assert "It started from `org/model`." in body
    assert "| beta | 0.1 |" in body


def test_a_base_without_public_name_is_not_named():
    text = model_card(**SETTINGS, base_model=None, is_encoder_decoder=True)

    assert "base_model" not in text
    assert "pipeline_tag: text2text-generation" in text
    assert "Its base model has no public name." in text


def test_it_says_what_was_cut_and_left_out_before():
    encoded = {"completions": 400, "rejected": 100, "truncated": 30}

    text = rows_on_card({"encoded": encoded, "rows": {"pairs": 120, "rows_without_partner": 30}})

    assert "Of 400 completions 100 (25.0%) were rejected and 30 (7.5%) were truncated." in text
    assert "Rows: 120 pairs, 30 rows without partner." in text
    assert rows_on_card({}) == ""
