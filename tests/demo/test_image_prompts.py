"""The demo's prompts for images, and the small pipeline made for them."""

import torch

from stages.demo.image_prompts import image_prompts
from stages.demo.scratch_diffusion import DiffusionSize, make_pipeline

SIZE = DiffusionSize(latent_size=4, channels=8, hidden_size=8)


def test_there_are_many_prompts_and_none_twice():
    prompts = image_prompts()

    assert len(prompts) == len(set(prompts)) >= 50


def test_no_prompt_is_cut():
    prompts = ["a fox", "a very long description of a lighthouse that stands by the sea"]

    tokenizer = make_pipeline(SIZE, prompts, seed=0).tokenizer

    assert tokenizer.model_max_length == max(len(tokenizer(prompt).input_ids) for prompt in prompts)
    assert [tokenizer.decode(tokenizer(p).input_ids, skip_special_tokens=True).strip() for p in prompts] == prompts


def test_the_seed_decides_the_weights_and_nothing_else_is_touched():
    torch.manual_seed(3)
    state = torch.get_rng_state()

    first, second, other = (make_pipeline(SIZE, ["a"], seed=seed).unet.state_dict() for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
