"""The methods that DPOTrainer documents: for single rows, for batches, for samples."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from stages.losses.dpo import PAIR_LOSSES
from stages.losses.pairs import PairLogps, PairSettings
from stages.rows.collation import PreferenceCollator
from stages.trainers import DPOTrainer
from tests.trainers.tiny import dpo_trainer, encoded_pairs, raw_pairs, tiny_llama, tiny_t5, tiny_tokenizer

RAW = Dataset.from_list(raw_pairs())
PAIR = {"prompt": "what is", "chosen": " the sky", "rejected": " a"}


@pytest.fixture
def trainer(tmp_path):
    return dpo_trainer(tmp_path, rows=RAW, ref_model=tiny_llama(seed=1))


def batch_of(trainer, number=5):
    return trainer.data_collator(trainer.train_dataset.select(range(number)).to_list())


def words(ids):
    return tiny_tokenizer().convert_ids_to_tokens(ids)


# ---- log-probabilities ----


def test_get_batch_logps_sums_or_averages_what_is_not_ignored():
    # uniform over 4: each token that counts costs log 4; the first label has nothing before it to be predicted from
    logits = torch.zeros(3, 4, 4)
    labels = torch.tensor([[1, 1, 2, 3], [-100, -100, 2, 3], [-100, -100, -100, -100]])

    sums = DPOTrainer.get_batch_logps(logits, labels)
    means = DPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)

    torch.testing.assert_close(sums, -math.log(4) * torch.tensor([3.0, 2.0, 0.0]))
    torch.testing.assert_close(means, -math.log(4) * torch.tensor([1.0, 1.0, 0.0]))


def test_get_batch_logps_shifts_nothing_for_an_encoder_decoder_and_ignores_the_given_label():
    logits = torch.eye(3)[None]  # (1, 3, 3): the logit of token i at place i is 1
    labels = torch.tensor([[0, 1, 9]])

    found = DPOTrainer.get_batch_logps(logits, labels, label_pad_token_id=9, is_encoder_decoder=True)

    assert found.item() == pytest.approx(2 * (1 - math.log(math.e + 2)), rel=1e-6)


def test_get_batch_logps_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected logits \(n, t, v\) and labels \(n, t\)"):
        DPOTrainer.get_batch_logps(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_concatenated_forward_gives_the_log_probabilities_that_training_takes(tmp_path, kind):
    model = tiny_llama() if kind == "causal" else tiny_t5()
    trainer = dpo_trainer(tmp_path, model=model, rows=RAW)
    model.eval()
    batch = batch_of(trainer)

    with torch.no_grad():
        chosen, rejected, chosen_logits, rejected_logits = trainer.concatenated_forward(model, batch)
        expected = trainer.logps_of(model, batch).logps

    torch.testing.assert_close(torch.cat([chosen, rejected]), expected, rtol=1e-5, atol=1e-5)
    assert chosen_logits.shape == rejected_logits.shape
    assert chosen_logits.shape[0] == 5


def test_concatenated_inputs_stand_chosen_first_at_one_width():
    batch = {
        "chosen_input_ids": torch.tensor([[5, 6, 7]]),
        "chosen_attention_mask": torch.tensor([[1, 1, 1]]),
        "chosen_labels": torch.tensor([[-100, 6, 7]]),
        "rejected_input_ids": torch.tensor([[5, 8]]),
        "rejected_attention_mask": torch.tensor([[1, 1]]),
        "rejected_labels": torch.tensor([[-100, 8]]),
    }

    found = DPOTrainer.concatenated_inputs(batch, padding_value=9, label_pad_token_id=-1)

    assert found["concatenated_input_ids"].tolist() == [[5, 6, 7], [5, 8, 9]]
    assert found["concatenated_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found["concatenated_labels"].tolist() == [[-100, 6, 7], [-100, 8, -1]]


def test_concatenated_inputs_of_an_encoder_decoder_repeat_the_prompt():
    batch = {
        "prompt_input_ids": torch.tensor([[5, 6, 7]]),
        "prompt_attention_mask": torch.tensor([[1, 1, 1]]),
        "chosen_labels": torch.tensor([[8]]),
        "rejected_labels": torch.tensor([[8, 9]]),
    }

    found = DPOTrainer.concatenated_inputs(batch, is_encoder_decoder=True)

    assert found["concatenated_input_ids"].tolist() == [[5, 6, 7], [5, 6, 7]]
    assert found["concatenated_labels"].tolist() == [[8, -100], [8, 9]]


def test_compute_reference_log_probs_are_those_of_the_reference(trainer):
    batch = batch_of(trainer)

    chosen, rejected = trainer.compute_reference_log_probs(batch)

    with torch.no_grad():
        expected = trainer.logps_of(tiny_llama(seed=1), batch).logps
    torch.testing.assert_close(torch.cat([chosen, rejected]), expected)


# ---- losses ----


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "kto_pair"])
def test_dpo_loss_is_the_named_loss_of_the_numbers_given(tmp_path, loss_type):
    trainer = dpo_trainer(tmp_path, rows=encoded_pairs(), loss_type=loss_type, beta=0.2)
    logps = [torch.tensor(values) for values in ([-3.0, -5.0], [-4.0, -2.0], [-3.5, -4.0], [-4.5, -4.0])]

    losses, chosen, rejected = trainer.dpo_loss(*logps)

    ones = torch.ones(2, dtype=torch.long)
    expected = PAIR_LOSSES[loss_type].function(PairLogps(*logps, ones, ones), PairSettings(beta=0.2))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(chosen, torch.tensor([0.1, -0.2]))
    torch.testing.assert_close(rejected, torch.tensor([0.1, 0.4]))


def test_dpo_loss_without_reference_takes_the_policys_numbers_alone(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=encoded_pairs())
    chosen, rejected = torch.tensor([-3.0], requires_grad=True), torch.tensor([-5.0])

    losses, *rewards = trainer.dpo_loss(
        chosen, rejected, torch.tensor([-9.0]), torch.tensor([-1.0]), reference_free=True
    )

    assert losses.item() == pytest.approx(math.log1p(math.exp(-0.2)), rel=1e-6)
    assert [reward.item() for reward in rewards] == pytest.approx([-0.3, -0.5])
    assert not rewards[0].requires_grad
    losses.sum().backward()
    assert chosen.grad.item() < 0


def test_get_batch_loss_metrics_are_those_of_a_step(trainer):
    trainer.model.eval()
    batch = batch_of(trainer)

    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    _, of_evaluation = trainer.get_batch_loss_metrics(trainer.model, batch, train_eval="eval")

    assert loss.requires_grad
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch))
    names = {f"{kind}/{side}" for kind in ("rewards", "logps", "logits") for side in ("chosen", "rejected")}
    assert set(metrics) == names | {"rewards/margins", "rewards/accuracies"}
    assert of_evaluation == {f"eval_{name}": value for name, value in metrics.items()}


# ---- rows ----


def test_tokenize_row_gives_ids_masks_and_labels_of_a_pair(trainer):
    row = trainer.tokenize_row(PAIR)

    assert words(row["chosen_input_ids"]) == ["<s>", "what", "is", "the", "sky", "</s>"]
    assert row["chosen_labels"] == [-100] * 3 + row["chosen_input_ids"][3:]
    assert row["chosen_attention_mask"] == [1] * 6
    assert words(row["rejected_input_ids"]) == ["<s>", "what", "is", "a", "</s>"]
    assert words(row["prompt_input_ids"]) == ["<s>", "what", "is"]
    assert row["prompt_attention_mask"] == [1] * 3


def test_tokenize_row_cuts_as_training_does(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=Dataset.from_list([PAIR, PAIR]), max_length=5, max_prompt_length=1)

    row = trainer.tokenize_row(PAIR)

    for side in ("chosen", "rejected"):
        assert row[f"{side}_input_ids"] == trainer.train_dataset[0][f"{side}_input_ids"]
    assert words(row["prompt_input_ids"]) == ["<s>", "is"]


def test_tokenize_row_of_an_encoder_decoder_has_labels_and_decoder_inputs(tmp_path):
    model = tiny_t5()
    trainer = dpo_trainer(tmp_path, model=model, rows=RAW)

    row = trainer.tokenize_row(PAIR, model)

    assert words(row["prompt_input_ids"]) == ["what", "is"]
    assert words(row["chosen_labels"]) == ["the", "sky"]
    # begins with the token that the decoder starts with, here the pad
    assert row["chosen_decoder_input_ids"] == [0, *row["chosen_labels"][:-1]]
    assert "decoder_input_ids" not in trainer.tokenize_row(PAIR)


def test_tokenize_row_says_why_a_pair_can_not_be_used(trainer):
    with pytest.raises(ValueError, match="leaves something to learn, found identical_pair"):
        trainer.tokenize_row({**PAIR, "rejected": PAIR["chosen"]})
    with pytest.raises(ValueError, match="expected chosen and rejected"):
        trainer.tokenize_row({"prompt": "what is", "completion": " it", "label": True})


def test_build_tokenized_answer_parts_a_text_into_prompt_and_answer(trainer):
    found = trainer.build_tokenized_answer("what is", " the sky")

    assert words(found["prompt_input_ids"]) == ["what", "is"]
    assert words(found["input_ids"]) == ["the", "sky"]
    assert (found["prompt_attention_mask"], found["attention_mask"]) == ([1, 1], [1, 1])


# ---- models ----


def sharpened(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(100.0)
    return model


def test_get_batch_samples_answers_the_prompts_with_policy_and_reference(tmp_path):
    trainer = dpo_trainer(
        tmp_path, model=sharpened(tiny_llama()), ref_model=sharpened(tiny_llama(seed=1)), rows=RAW, max_length=20
    )

    policy, reference = trainer.get_batch_samples(trainer.model, batch_of(trainer))

    assert len(policy) == len(reference) == 5
    assert all(isinstance(text, str) for text in (*policy, *reference))
    assert policy != reference


def test_get_batch_samples_of_a_policy_that_is_its_reference_are_the_same(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = dpo_trainer(tmp_path, rows=RAW, peft_config=adapter, max_length=20)

    policy, reference = trainer.get_batch_samples(trainer.model, batch_of(trainer))

    assert policy == reference


def test_get_batch_samples_samples_in_the_types_of_training(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=RAW, max_length=12, bf16=True)
    types = []
    trainer.model.lm_head.register_forward_hook(lambda _, __, logits: types.append(logits.dtype))

    trainer.get_batch_samples(trainer.model, batch_of(trainer))

    assert set(types) == {torch.bfloat16}


def test_get_batch_samples_of_an_encoder_decoder_reads_whole_prompts(tmp_path):
    trainer = dpo_trainer(tmp_path, model=tiny_t5(), rows=RAW, max_length=20)
    asked = []
    trainer.model.encoder.register_forward_pre_hook(
        lambda _, __, given: asked.append(given["input_ids"].tolist()), with_kwargs=True
    )
    batch = batch_of(trainer)

    policy, reference = trainer.get_batch_samples(trainer.model, batch)

    rows = zip(batch["chosen_input_ids"].tolist(), batch["chosen_attention_mask"].tolist(), strict=True)
    prompts = {tuple(token for token, is_there in zip(*row, strict=True) if is_there) for row in rows}
    assert {tuple(token for token in row if token) for row in asked[0]} == prompts
    assert policy == reference


def test_get_batch_samples_wants_a_reference(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=encoded_pairs())

    with pytest.raises(ValueError, match="expected a reference model to sample from"):
        trainer.get_batch_samples(trainer.model, PreferenceCollator(0)(encoded_pairs(2).to_list()))


def test_null_ref_context_makes_the_policy_the_reference(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = dpo_trainer(tmp_path, rows=RAW, peft_config=adapter)
    batch = batch_of(trainer)
    trainer.model.eval()

    with torch.no_grad():
        before = trainer.logps_of(trainer.model, batch).logps
        with trainer.null_ref_context():
            inside = trainer.logps_of(trainer.model, batch).logps
        after = trainer.logps_of(trainer.model, batch).logps
        base = trainer.logps_of(tiny_llama(), batch).logps

    torch.testing.assert_close(inside, base)
    assert torch.equal(before, after)
    assert not torch.allclose(before, inside)


def test_null_ref_context_changes_nothing_where_the_reference_is_another_model(trainer):
    batch = batch_of(trainer)

    with torch.no_grad(), trainer.null_ref_context():
        found = trainer.logps_of(trainer.model, batch).logps
        expected = trainer.logps_of(tiny_llama(), batch).logps

    torch.testing.assert_close(found, expected)
