"""Models other than a plain causal one: encoder-decoders, mixtures of experts, checkpointed activations."""

import pytest
import torch
from datasets import Dataset

from stages.models.seq2seq import seq2seq_logps
from tests.trainers.tiny import bco_trainer, raw_rows, tiny_llama, tiny_mixtral, tiny_t5


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_an_encoder_decoder_scores_each_token_of_the_completion_alone_or_padded():
    model = tiny_t5()
    ids = torch.tensor([[5, 6, 7]])
    answer = torch.tensor([[8, 9, 2]])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=answer).loss.item()
        found = seq2seq_logps(
            model,
            input_ids=torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
            decoder_input_ids=torch.tensor([[8, 9, 2, 0], [8, 2, 0, 0]]),
            completion_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
        )

    assert found.num_tokens.tolist() == [3, 2]
    assert found.logps[0].item() == pytest.approx(-3 * expected, rel=1e-5)
    assert found.token_logps[1, 2:].tolist() == [0.0, 0.0]


def test_an_encoder_decoder_keeps_the_ends_that_its_tokenizer_sets(tmp_path):
    trainer = bco_trainer(tmp_path, model=tiny_t5(), rows=Dataset.from_list(raw_rows(3)))

    row = trainer.train_dataset[1]

    assert trainer.is_encoder_decoder
    assert row["prompt_length"] < len(row["input_ids"])


def test_an_encoder_reads_prompts_of_max_prompt_length_in_rows_of_any_length(tmp_path):
    rows = Dataset.from_list(
        [{"prompt": "what is the sky a sea", "completion": " blue", "label": i > 0} for i in (0, 1)]
    )
    trainer = bco_trainer(tmp_path, model=tiny_t5(), rows=rows, max_prompt_length=3)

    row = trainer.train_dataset[0]

    words = trainer.processing_class.convert_ids_to_tokens(row["input_ids"])
    assert words == ["sky", "a", "sea", "blue"]
    assert row["prompt_length"] == 3


def test_a_mixture_of_experts_adds_its_balance_loss(tmp_path):
    found = {}
    for coefficient in (0.0, 0.5):
        model = tiny_mixtral(output_router_logits=True, router_aux_loss_coef=coefficient)
        trainer = bco_trainer(tmp_path, model=model, max_steps=1)
        trainer.train()
        found[coefficient] = losses(trainer)[0]

    # balanced experts give an auxiliary loss of the number of experts per token, here 2
    assert found[0.5] - found[0.0] == pytest.approx(0.5 * 2, rel=0.2)


def test_a_mixture_of_experts_without_router_logits_adds_nothing(tmp_path):
    trainer = bco_trainer(tmp_path, model=tiny_mixtral(output_router_logits=False, router_aux_loss_coef=9.0))

    trainer.train()

    assert losses(trainer)[0] < 5


def test_activations_computed_again_give_the_same_weights(tmp_path):
    models = []
    for checkpointing in (False, True):
        trainer = bco_trainer(tmp_path, model=tiny_llama(), activation_checkpointing=checkpointing)
        trainer.train()
        models.append(trainer.model)

    for plain, checkpointed in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-6)
