"""Reward models: made of policies, loaded from folders, and their scores."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, GPT2Config

from stages.models.loading import load_causal_lm
from stages.models.pointer import write_lineage
from stages.models.scoring import RewardScorer, load_reward_model, reward_model_of, score_sequences, scores_of
from stages.models.tokenizers import load_tokenizer
from tests.models.models_on_disk import write_local_pointer
from tests.trainers.tiny import tiny_llama, tiny_tokenizer

# peft 0.21 asks transformers 5 under a name that has changed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SEQUENCES = [[1, 5, 9, 7], [1, 5], [1, 8, 8, 8, 8, 8, 8, 3, 20], [1, 30, 31]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny_llama().save_pretrained(folder / "weights")
    tiny_tokenizer().save_pretrained(folder / "weights")
    return write_local_pointer(folder / "base", folder / "weights")


@pytest.fixture(scope="module")
def reward_folder(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    model = reward_model_of(policy, seed=3)
    with torch.no_grad():
        model.score.weight.mul_(50)
    model.save_pretrained(folder)
    load_tokenizer(policy).save_pretrained(folder)
    return folder


def test_a_reward_model_begins_with_the_layers_of_its_policy_and_a_head_of_its_own(policy):
    made = reward_model_of(policy, seed=3)

    layers = load_causal_lm(policy).base_model.state_dict()
    assert all(torch.equal(made.base_model.state_dict()[name], weight) for name, weight in layers.items())
    assert made.score.weight.shape == (1, 32)
    assert (made.config.num_labels, made.config.pad_token_id) == (1, load_tokenizer(policy).pad_token_id)
    assert torch.equal(made.score.weight, reward_model_of(policy, seed=3).score.weight)
    assert not torch.equal(made.score.weight, reward_model_of(policy, seed=4).score.weight)


def test_making_a_reward_model_leaves_the_callers_random_stream_alone(policy):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    reward_model_of(policy)

    assert torch.equal(torch.rand(1), expected)


@PEFT_WARNS
def test_the_adapter_of_a_policy_becomes_part_of_the_reward_model(policy, tmp_path):
    adapted = get_peft_model(load_causal_lm(policy), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    write_lineage(tmp_path / "adapter", policy)

    made = reward_model_of(tmp_path / "adapter")

    before = reward_model_of(policy).base_model.state_dict()
    changed = [name for name, weight in made.base_model.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == ["layers.0.self_attn.q_proj.weight"]


def test_a_saved_reward_model_scores_as_before_and_as_transformers_loads_it(reward_folder):
    scores = score_sequences(load_reward_model(reward_folder), SEQUENCES, batch_size=2)

    plain = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    with torch.no_grad():
        expected = [plain(input_ids=torch.tensor([row])).logits.item() for row in SEQUENCES]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(scores) > 0.1


@PEFT_WARNS
def test_an_adapter_of_a_reward_model_brings_its_head(policy, tmp_path):
    adapted = get_peft_model(reward_model_of(policy), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    with torch.no_grad():
        adapted.base_model.model.score.modules_to_save["default"].weight.fill_(0.25)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    write_lineage(tmp_path / "adapter", policy)

    loaded = load_reward_model(tmp_path / "adapter")

    np.testing.assert_allclose(
        score_sequences(loaded, SEQUENCES, batch_size=4),
        score_sequences(adapted.eval(), SEQUENCES, batch_size=4),
        rtol=1e-5,
    )


def test_a_rows_score_doesnt_depend_on_the_rows_beside_it(reward_folder):
    model = load_reward_model(reward_folder)
    together = score_sequences(model, SEQUENCES, batch_size=3)

    alone = [score_sequences(model, [row], batch_size=3)[0] for row in SEQUENCES]

    assert together.tolist() == alone


def test_texts_score_as_the_ids_that_tokenization_gives_them(reward_folder):
    scorer = RewardScorer.load(reward_folder, batch_size=2)
    tokenizer = scorer.tokenizer
    rows = [
        # This tokenizer puts no BOS before a text, and neither does a server.
        [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in ("what is blue", "what is blue sky")
    ]

    scores = scorer.texts(["what is"] * 2, [" blue", " blue sky"])

    assert scores.tolist() == scorer.sequences(rows).tolist()
    cut = scorer.texts(["what is"], [" blue"], are_complete=[False])
    assert cut.tolist() == scorer.sequences([rows[0][:-1]]).tolist()


def test_a_row_beyond_the_models_positions_keeps_its_begin_token_and_its_end(reward_folder):
    scorer = RewardScorer.load(reward_folder)._replace(max_length=4)
    bos = scorer.tokenizer.bos_token_id

    scores = scorer.sequences([[bos, 20, 21, 22, 23, 24], [20, 21, 22, 23, 24]])

    assert scores.tolist() == scorer.sequences([[bos, 22, 23, 24], [21, 22, 23, 24]]).tolist()


def test_an_encoder_can_be_a_reward_model(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)

    assert score_sequences(load_reward_model(tmp_path), SEQUENCES, batch_size=2).shape == (4,)


def test_refuses_what_is_no_reward_model(policy, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"found one without score.weight; train one"):
        load_reward_model(tmp_path / "causal")

    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="one label, found GPT2ForSequenceClassification with 3"):
        load_reward_model(tmp_path / "three")

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no weights"):
        load_reward_model(tmp_path / "empty")


def test_refuses_rows_and_scores_that_cant_be_compared(reward_folder):
    model = load_reward_model(reward_folder)
    with pytest.raises(ValueError, match="at least one token in every row, found none in row 1"):
        score_sequences(model, [[1], []], batch_size=2)
    with pytest.raises(ValueError, match=r"one score for each of 1 rows, found logits of shape \(1, 2\)"):
        two = AutoModelForSequenceClassification.from_config(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
        scores_of(two, input_ids=torch.ones(1, 3).long(), attention_mask=torch.ones(1, 3).long())
    with torch.no_grad():
        model.score.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="expected finite scores, found nan in row 0"):
        score_sequences(model, [[1, 2]], batch_size=2)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="expected a reward model with a pad token"):
        score_sequences(model, [[1, 2]], batch_size=2)
