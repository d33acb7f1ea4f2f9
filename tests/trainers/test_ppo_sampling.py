"""Sampling for PPO: in evaluation mode, cut behind the response's end, alone and in batches."""

import pytest
import torch
from transformers import GenerationConfig

from stages.models.value_head import AutoModelForSeq2SeqLMWithValueHead
from tests.trainers.tiny import tiny_llama, tiny_t5
from tests.trainers.tiny_ppo import rollouts, tiny_policy, tiny_trainer

GREEDY = {"do_sample": False, "max_new_tokens": 5}
QUERIES = [torch.tensor([7, 8, 9]), torch.tensor([10, 11]), torch.tensor([12, 13, 14, 15, 16])]


@pytest.fixture(scope="module")
def trainer():
    return tiny_trainer(ref_model=tiny_llama(seed=1))


def test_a_batch_gives_what_each_query_gives_alone(trainer):
    alone = [trainer.generate(query, **GREEDY)[0] for query in QUERIES]

    together = trainer.generate(QUERIES, batch_size=2, **GREEDY)

    for query, one, other in zip(QUERIES, alone, together, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[: len(query)], query)


def test_the_prompt_is_left_out_on_request(trainer):
    whole = trainer.generate(QUERIES, **GREEDY)

    bare = trainer.generate(QUERIES, return_prompt=False, **GREEDY)

    for query, one, other in zip(QUERIES, whole, bare, strict=True):
        assert torch.equal(one[len(query) :], other)
    assert torch.equal(trainer.generate(QUERIES[0], return_prompt=False, **GREEDY)[0], bare[0])


def test_p4_a_query_that_holds_an_end_stays_whole(trainer):
    queries = [torch.tensor([7, 2, 8]), torch.tensor([9, 10])]

    found = trainer.generate(queries, **GREEDY)

    assert torch.equal(found[0][:3], queries[0])
    assert len(found[0]) > 3


def test_a_response_ends_with_the_first_end_behind_its_query(trainer):
    longest = trainer.generate(QUERIES, return_prompt=False, **GREEDY)
    end = int(longest[0][1])

    found = trainer.generate(QUERIES, return_prompt=False, eos_token_id=end, **GREEDY)
    listed = trainer.generate(QUERIES, return_prompt=False, eos_token_id=[end, 31], **GREEDY)
    configured = trainer.generate(
        QUERIES, return_prompt=False, generation_config=GenerationConfig(**GREEDY, eos_token_id=end)
    )

    assert found[0].tolist() == longest[0][:2].tolist()
    for other in (listed, configured):
        assert other[0].tolist() == found[0].tolist()
    for ids in found:
        assert end not in ids[:-1].tolist()


def test_a_sampler_gives_the_number_of_new_tokens_of_each_batch(trainer):
    lengths = iter([2, 4, 3])
    settings = {"do_sample": False, "eos_token_id": None, "return_prompt": False}

    found = trainer.generate(QUERIES, length_sampler=lambda: next(lengths), batch_size=2, **settings)
    one = trainer.generate(QUERIES[0], length_sampler=lambda: next(lengths), **settings)

    assert [len(ids) for ids in found] == [2, 2, 4]
    assert one.shape == (1, 3)


def test_the_reference_answers_too(trainer):
    ours, theirs = trainer.generate(QUERIES, generate_ref_response=True, **GREEDY)

    reference = tiny_trainer(model=tiny_policy(seed=1))
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in trainer.generate(QUERIES, **GREEDY)]
    assert [ids.tolist() for ids in theirs] == [ids.tolist() for ids in reference.generate(QUERIES, **GREEDY)]
    one, other = trainer.generate(QUERIES[0], generate_ref_response=True, **GREEDY)
    assert (one[0].tolist(), other[0].tolist()) == (ours[0].tolist(), theirs[0].tolist())


def test_p5_sampling_is_in_evaluation_mode_before_and_after_a_step():
    trainer = tiny_trainer(model=tiny_policy(model=tiny_llama(dropout=0.5)))
    modes = []
    trainer.model.pretrained_model.model.layers[0].register_forward_pre_hook(
        lambda module, _: modes.append(module.training)
    )
    trainer.model.train()

    trainer.generate(QUERIES[0], **GREEDY)
    trainer.step(**rollouts())
    after_step = len(modes)
    trainer.generate(QUERIES, **GREEDY)

    assert True in modes[:after_step]  # the passes that learn
    assert not any(modes[:5])
    assert not any(modes[after_step:])
    assert trainer.model.training


def test_an_encoder_decoder_answers_beginning_with_its_start():
    torch.manual_seed(0)
    trainer = tiny_trainer(model=AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5()))

    found = trainer.generate(QUERIES, do_sample=False, max_new_tokens=4, eos_token_id=[0, 2])
    one = trainer.generate(QUERIES[0], do_sample=False, max_new_tokens=4)

    for ids in found:
        assert ids[0] == 0
        assert len(ids) > 1  # the start is an end here, and doesn't count as one
    assert one.shape[0] == 1


def test_several_responses_need_their_query_several_times(trainer):
    with pytest.raises(ValueError, match="one response per query, found num_return_sequences=2"):
        trainer.generate(QUERIES, num_return_sequences=2, do_sample=True)
