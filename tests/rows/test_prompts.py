"""Distinct prompts, which methods that sample their own answers learn from."""

import json

import pyarrow as pa
import pytest

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.rows.prompts import encode_prompts, prompt_rows
from tests.rows.small_tables import kept
from tests.stages.feedback import write_completions, write_rows
from tests.trainers.tiny import tiny_tokenizer


def log(folder):
    rows = [
        {
            "prompt": f"<s> <user> what is {word} <assistant> ",
            "messages": json.dumps({"prompt": f"what is {word}"}),
            "source": json.dumps({"topic": word, "place": place}),
            "split": "test" if word == "sea" else "train",
        }
        for place, word in enumerate(["sky", "sea", "sky", "red", "sea"])
    ]
    return write_completions(folder / "completions", rows)


def test_a_prompt_is_one_row_its_first(tmp_path):
    completions = log(tmp_path)

    found = prompt_rows(completions, COMPLETIONS)

    assert found.table["row"].to_pylist() == [0, 1, 3]
    assert found.table["split"].to_pylist() == ["train", "test", "train"]
    assert found.counts == {"train": {"train": 2, "test": 1}}
    assert found.table["length"].null_count == 3
    texts = kept(tmp_path, found, completions, "prompts", COMPLETIONS).of_split("train").texts()
    assert texts.equals(read_table(completions, COMPLETIONS).take(pa.array([0, 3])))


def test_prompts_of_images_likewise(tmp_path):
    rows = [
        {"prompt_id": f"id of {prompt}", "prompt": prompt, "split": split}
        for prompt, split in [("a cat", "train"), ("a dog", "test"), ("a cow", "train")]
    ]
    path = write_rows(tmp_path / "image_prompts", IMAGE_PROMPTS, rows)

    found = kept(tmp_path, prompt_rows(path, IMAGE_PROMPTS), path, "image_prompts", IMAGE_PROMPTS)

    assert found.of_split("train").texts()["prompt"].to_pylist() == ["a cat", "a cow"]
    assert found.counts["train"] == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("prompts_as", "text"), [("user", "what is red"), ("templated", "<s> <user> what is red <assistant> ")]
)
def test_a_prompt_has_its_tokens_and_what_a_reward_wants_to_know(tmp_path, prompts_as, text):
    table = read_table(log(tmp_path), COMPLETIONS)

    found, num_too_long = encode_prompts(table, tiny_tokenizer(), room=None)

    assert found[3].text(prompts_as) == text
    assert found[3].row == {"topic": "red", "place": 3}
    assert tiny_tokenizer().decode(found[3].input_ids).split() == ["<s>", "<user>", "what", "is", "red", "<assistant>"]
    assert (len(found), num_too_long) == (5, 0)


def test_prompts_that_leave_no_room_are_counted(tmp_path):
    table = read_table(log(tmp_path), COMPLETIONS)

    assert encode_prompts(table, tiny_tokenizer(), room=5) == ([], 5)
    assert len(encode_prompts(table, tiny_tokenizer(), room=6)[0]) == 5
