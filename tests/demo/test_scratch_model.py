"""The demo's own model: its tokenizer, what it is trained on, and that training is the same every time."""

import json

import pytest
import torch

from stages.demo.scratch_model import (
    IGNORED,
    Demonstration,
    ModelSize,
    encode,
    make_model,
    read_demonstrations,
    train,
    train_tokenizer,
)

ROWS = [
    Demonstration("Say the opposites of hot, big and fast.", "cold, small, slow"),
    Demonstration("Add one to one, two and six.", "two, three, seven"),
] * 8
SIZE = ModelSize(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(ROWS, vocab_size=400)


def test_any_text_comes_back_from_its_tokens(tokenizer):
    for text in ["cold, small, slow", "Ünïcode 中文 \n x  y", "", " two"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.removeprefix(" ")


def test_a_word_is_the_same_token_at_the_start_and_within(tokenizer):
    ids = tokenizer("small, small")["input_ids"]

    assert ids[0] == ids[-1]


def test_the_pad_token_is_not_the_end_of_a_turn(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_chat_template_ends_each_turn_and_asks_for_the_next(tokenizer):
    turn = [{"role": "user", "content": "Hi"}]

    assert tokenizer.apply_chat_template(turn, tokenize=False) == "<|user|>Hi<|end|>"
    asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>Hi<|end|><|assistant|>"


def test_only_the_completion_and_its_end_have_a_loss(tokenizer):
    input_ids, labels = encode(tokenizer, ROWS[:1])

    counted = labels[0][labels[0] != IGNORED]
    assert tokenizer.decode(counted) == " cold, small, slow<|end|>".strip()
    assert counted[-1] == tokenizer.eos_token_id
    assert torch.equal(counted, input_ids[0][labels[0] != IGNORED])


def trained(tokenizer, seed):
    model = make_model(tokenizer, SIZE, seed=seed)
    loss = train(model, *encode(tokenizer, ROWS), num_epochs=3, batch_size=4, learning_rate=1e-2, seed=seed)
    return model, loss


def test_training_lowers_the_loss_and_is_the_same_for_the_same_seed(tokenizer):
    state = torch.random.get_rng_state()

    (first, loss), (again, _), (other, _) = (trained(tokenizer, seed) for seed in (0, 0, 1))

    assert loss < 5.0 < torch.log(torch.tensor(len(tokenizer)))
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_width_that_heads_cannot_share_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"multiple of 2 \* num_heads \(4\), found 18"):
        make_model(tokenizer, SIZE._replace(hidden_size=18), seed=0)


def test_reads_demonstrations(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    }
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n")

    assert read_demonstrations(tmp_path / "rows.jsonl") == [Demonstration("Hi", "Hello")]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"prompt": "Hi", "completion": "Hello"}', '{"prompt": [], "completion": []}']
)
def test_a_line_that_is_no_demonstration_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f"{line}\n")

    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected .*correct the line"):
        read_demonstrations(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("text", [None, ""])
def test_missing_demonstrations_are_an_error_with_the_remedy(tmp_path, text):
    if text is not None:
        (tmp_path / "rows.jsonl").write_text(text)

    with pytest.raises(ValueError, match="run `dvc repro demo_feedback`"):
        read_demonstrations(tmp_path / "rows.jsonl")
