"""Documents side by side in one row: what a model says of each is what it says of it alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig

from stages.models.documents import keeps_documents_apart
from stages.models.logprobs import completion_logps
from tests.models.tiny import CONFIGS, tiny_model

DOCUMENTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17]]


def packed():
    ids = torch.tensor([[token for document in DOCUMENTS for token in document]])
    positions = torch.tensor([[place for document in DOCUMENTS for place in range(len(document))]])
    return ids, positions


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_are_those_of_each_document_alone(name):
    model = tiny_model(name)
    ids, positions = packed()

    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([document])).logits[0] for document in DOCUMENTS])

    assert keeps_documents_apart(model)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_those_of_each_document_alone():
    model = tiny_model("llama")
    ids, positions = packed()

    found = completion_logps(
        model, input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=positions > 0, position_ids=positions
    )

    alone = [
        completion_logps(
            model,
            input_ids=torch.tensor([document]),
            attention_mask=torch.ones(1, len(document)),
            completion_mask=torch.ones(1, len(document)),
        )
        for document in DOCUMENTS
    ]
    torch.testing.assert_close(found.logps[0], sum(one.logps[0] for one in alone))
    assert found.num_tokens.tolist() == [4 + 1 + 5]


@pytest.mark.parametrize(
    "config",
    [BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), MambaConfig(vocab_size=97, hidden_size=32)],
    ids=["alibi", "state space"],
)
def test_models_that_carry_on_are_found_out(config):
    assert not keeps_documents_apart(AutoModelForCausalLM.from_config(config))


def test_leaves_the_model_in_the_mode_it_is_found_in():
    model = tiny_model("llama").train()

    keeps_documents_apart(model)

    assert model.training
