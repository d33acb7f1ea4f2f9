"""Sampling: what a completion depends on, where it ends, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.models.generation import Sampling, _OwnNumbers, sample_completions, sample_ids, stop_at, stop_ids
from tests.apple_device import MPS, without_doubles

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(30))]
END = 1


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=END,
        bos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def sample(model, tokenizer, prompts, **changes):
    return sample_ids(model, tokenizer, prompts, sampling=Sampling(2, 8, batch_size=4)._replace(**changes))


def test_a_prompts_samples_dont_depend_on_its_neighbours(model, tokenizer):
    prompts = [[5, 6, 7], [8, 9], list(range(2, 22)), [10], [11, 12, 13, 14]]

    together = sample(model, tokenizer, prompts)

    assert together == [sample(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert together == sample(model, tokenizer, prompts[::-1])[::-1]


def test_samples_of_a_prompt_differ_and_another_seed_gives_others(model, tokenizer):
    first = sample(model, tokenizer, [[5, 6, 7]], num_samples=4)[0]

    assert len({tuple(ids) for ids in first}) > 1
    assert first != sample(model, tokenizer, [[5, 6, 7]], num_samples=4, seed=1)[0]


def test_more_samples_leave_the_first_ones_as_they_were(model, tokenizer):
    assert sample(model, tokenizer, [[5, 6]], num_samples=6)[0][:2] == sample(model, tokenizer, [[5, 6]])[0]


def test_tokens_come_as_often_as_the_model_says(model, tokenizer):
    prompt = [5, 6, 7]
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)

    ids = sample(model, tokenizer, [prompt], num_samples=4000, max_new_tokens=1, batch_size=500)[0]

    found = torch.bincount(torch.tensor([row[0] for row in ids]), minlength=len(WORDS)) / len(ids)
    # The standard deviation of a share is at most 0.5 / sqrt(4000) = 0.008.
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_temperature_sharpens_and_top_p_cuts_the_tail(model, tokenizer):
    prompt = [5, 6, 7]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    likeliest = int(logits.argmax())

    cold = sample(model, tokenizer, [prompt], num_samples=200, max_new_tokens=1, temperature=0.05)[0]
    cut = sample(model, tokenizer, [prompt], num_samples=200, max_new_tokens=1, top_p=0.01)[0]
    greedy = sample(model, tokenizer, [prompt], num_samples=2, max_new_tokens=1, temperature=0.0)[0]

    assert sum(row == [likeliest] for row in cold) > 150
    assert cut == [[likeliest]] * 200
    assert greedy == [[likeliest]] * 2


def test_greedy_text_is_what_the_model_says_step_by_step(model, tokenizer):
    ids = [5, 6, 7]

    with torch.no_grad():
        for _ in range(6):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == END:
                break

    assert sample(model, tokenizer, [[5, 6, 7]], max_new_tokens=6, temperature=0.0)[0][0] == ids[3:]


def test_a_completion_ends_with_its_end_token_or_at_the_limit(model, tokenizer):
    completions = sample(model, tokenizer, [[5, 6], [7, 8, 9]], num_samples=40, max_new_tokens=12)

    rows = [row for group in completions for row in group]
    assert any(row[-1] == END for row in rows)
    assert all(END not in row[:-1] for row in rows)
    assert all(row[-1] == END or len(row) == 12 for row in rows)


def test_what_the_models_makers_advise_for_sampling_is_left_aside(model, tokenizer):
    before = sample(model, tokenizer, [[5, 6, 7]])
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.no_repeat_ngram_size = 1
    try:
        after = sample(model, tokenizer, [[5, 6, 7]])
    finally:
        model.generation_config.repetition_penalty = None
        model.generation_config.no_repeat_ngram_size = None

    assert after == before


def test_texts_come_without_special_tokens_and_the_model_keeps_its_mode(model, tokenizer):
    model.train()
    texts = sample_completions(
        model, tokenizer, ["w3 w4", "w5"], num_samples=3, max_new_tokens=30, temperature=1.0, top_p=1.0
    )
    was_training = model.training
    model.eval()

    assert was_training
    assert [len(row) for row in texts] == [3, 3]
    assert not any("<" in text for row in texts for text in row)


def test_no_prompts_give_no_completions(model, tokenizer):
    assert sample(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples from 1, found 0"),
        ({"max_new_tokens": 0}, "max_new_tokens from 1"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 0.0}, r"top_p 0\.0"),
    ],
)
def test_names_the_setting_that_is_out_of_range(model, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, [[5]], **changes)


def test_names_the_prompt_that_has_no_tokens(model, tokenizer):
    with pytest.raises(ValueError, match="none in prompt 1"):
        sample(model, tokenizer, [[5], []])


def test_tokens_are_drawn_where_no_doubles_are():
    with without_doubles():
        draw = _OwnNumbers(torch.rand(2, 8, dtype=torch.float64), 3, Sampling(1, 8))

        found = draw(torch.ones(2, 4, dtype=torch.long, device=MPS), torch.randn(2, len(WORDS), device=MPS))

    assert (found.shape, found.device.type) == ((2, len(WORDS)), "mps")


@pytest.mark.parametrize(
    ("listed", "tokens", "ends", "is_new"),
    [(END, [], {END}, False), ([END, 5], [], {END, 5}, False), (5, [], {END, 5}, True), (None, ["w5"], {END, 7}, True)],
)
def test_a_model_stops_at_what_it_lists_its_tokenizers_end_and_the_ends_of_rows(
    tokenizer, listed, tokens, ends, is_new
):
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=listed))

    assert stop_at(model, tokenizer, tokens) is is_new

    assert stop_ids(model.generation_config, tokenizer) == ends
    assert stop_at(model, tokenizer, tokens) is False
    assert stop_at(SimpleNamespace(), tokenizer, tokens) is False
