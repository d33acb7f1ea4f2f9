"""References: a copy, another model, the adapter off, another adapter, an adapter as it came."""

import gc
import math
import weakref

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from stages.models.frozen import FrozenWeights
from stages.models.logprobs import completion_logps
from stages.rows.collation import PreferenceCollator
from stages.rows.raw import Lengths, RowReader
from tests.trainers.tiny import bco_trainer, encoded_rows, raw_rows, tiny_llama, tiny_tokenizer

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ROWS = Dataset.from_list(raw_rows())


def lora(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def with_trained_adapter(*, seed=5):
    """A model whose adapter does something."""
    model = get_peft_model(tiny_llama(), lora())
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return model


def reference_logps(trainer):
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    return trainer.reference_logps_of(batch)


def logps(model):
    rows, _ = RowReader(tiny_tokenizer(), Lengths()).labelled(ROWS, name="rows", extra_columns=())
    batch = PreferenceCollator(0)(rows.to_list())
    masks = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    with torch.no_grad():
        return completion_logps(model, **masks).logps


def first_loss(trainer):
    return next(line["loss"] for line in trainer.state.log_history if "loss" in line)


def test_copies_of_an_adapter_go_to_the_policys_device_once():
    policy = with_trained_adapter()
    reference = FrozenWeights(lambda: policy)
    policy.to("meta")  # stands for an accelerator, of whose values nothing is asked here

    with reference.active():
        moved = dict(reference.weights)

    assert {weight.device.type for weight in moved.values()} == {"meta"}
    with reference.active():
        assert all(reference.weights[name] is weight for name, weight in moved.items())


def test_a_copy_stays_as_the_policy_was(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS)
    before = reference_logps(trainer)

    trainer.train()

    assert torch.equal(reference_logps(trainer), before)
    assert not torch.equal(logps(trainer.model), before)
    assert not any(weight.requires_grad for weight in trainer.reference.model.parameters())


def test_another_model_is_the_reference_if_given(tmp_path):
    other = tiny_llama(seed=3)

    trainer = bco_trainer(tmp_path, rows=ROWS, ref_model=other)

    torch.testing.assert_close(reference_logps(trainer), logps(tiny_llama(seed=3)))


def test_a_new_adapter_is_switched_off_for_the_reference(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS, peft_config=lora())

    trainer.train()

    torch.testing.assert_close(reference_logps(trainer), logps(tiny_llama()))
    assert not torch.allclose(logps(trainer.model), logps(tiny_llama()))
    assert first_loss(trainer) == pytest.approx(math.log(2), rel=1e-6)


def test_b22_an_adapter_that_was_trained_before_is_part_of_the_reference(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS, model=with_trained_adapter())

    trainer.train()

    torch.testing.assert_close(reference_logps(trainer), logps(with_trained_adapter()))
    assert first_loss(trainer) == pytest.approx(math.log(2), rel=1e-6)
    assert not torch.allclose(logps(trainer.model), reference_logps(trainer))


def test_a_named_adapter_is_the_reference_and_is_not_trained(tmp_path):
    with_trained_adapter().save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "adapter"), adapter_name="policy", is_trainable=True)
    model.load_adapter(str(tmp_path / "adapter"), adapter_name="frozen")

    trainer = bco_trainer(
        tmp_path, rows=ROWS, model=model, model_adapter_name="policy", ref_adapter_name="frozen", max_steps=5
    )
    trainer.train()

    torch.testing.assert_close(reference_logps(trainer), logps(with_trained_adapter()))
    assert trainer.model.active_adapter == "policy"
    assert first_loss(trainer) == pytest.approx(math.log(2), rel=1e-6)
    trainable = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trainable
    assert all(".policy." in name for name in trainable)
    assert not torch.allclose(logps(trainer.model), reference_logps(trainer))


def test_an_unknown_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an adapter other, found default"):
        bco_trainer(tmp_path, rows=ROWS, model=with_trained_adapter(), ref_adapter_name="other")


@pytest.mark.parametrize("name", ["ref_adapter_name", "model_adapter_name"])
def test_an_adapter_of_a_policy_that_has_none_is_refused_before_rows_are_encoded(tmp_path, monkeypatch, name):
    monkeypatch.setattr(RowReader, "labelled", lambda *_, **__: pytest.fail("rows were encoded"))

    with pytest.raises(ValueError, match="expected a policy with an adapter frozen, found one without any"):
        bco_trainer(tmp_path, rows=ROWS, **{name: "frozen"})


def test_b22_an_adapter_that_a_model_init_brings_is_part_of_the_reference(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS, model_init=with_trained_adapter)

    trainer.train()

    torch.testing.assert_close(reference_logps(trainer), logps(with_trained_adapter()))
    assert first_loss(trainer) == pytest.approx(math.log(2), rel=1e-6)


def test_an_adapter_beneath_a_new_one_becomes_part_of_the_base(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS, model=with_trained_adapter(), peft_config=lora())

    torch.testing.assert_close(reference_logps(trainer), logps(with_trained_adapter()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_precomputed_log_probabilities_are_those_of_a_live_reference(tmp_path, kind):
    peft_config = {"full": None, "adapter": lora()}[kind]

    trainer = bco_trainer(tmp_path, rows=ROWS, peft_config=peft_config, precompute_ref_log_probs=True)

    found = torch.tensor(trainer.train_dataset["reference_logps"][:])
    torch.testing.assert_close(found, logps(tiny_llama()))


@pytest.mark.parametrize("arguments", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}])
def test_every_row_gets_its_own_log_probability_however_batches_are_made(tmp_path, arguments):
    live = bco_trainer(tmp_path, rows=ROWS)

    precomputed = bco_trainer(tmp_path, rows=ROWS, precompute_ref_log_probs=True, **arguments)

    found = torch.tensor(precomputed.train_dataset["reference_logps"][:])
    torch.testing.assert_close(found, reference_logps(live))


@pytest.mark.parametrize("rows", [ROWS, encoded_rows()], ids=["precomputed", "column"])
def test_a_reference_model_is_let_go_where_nothing_reads_it_any_more(tmp_path, rows):
    other = tiny_llama(seed=3)
    watched = weakref.ref(other)

    trainer = bco_trainer(tmp_path, rows=rows, ref_model=other, precompute_ref_log_probs=True)

    del other
    gc.collect()
    assert trainer.reference is None
    assert watched() is None


def test_a_reference_model_is_not_loaded_where_all_rows_have_the_column(tmp_path):
    assert bco_trainer(tmp_path, ref_model=str(tmp_path / "nowhere")).reference is None


@pytest.mark.parametrize("rows", [ROWS, encoded_rows()], ids=["precomputed", "column"])
def test_a_reference_model_that_evaluation_samples_from_is_kept(tmp_path, rows):
    trainer = bco_trainer(
        tmp_path, rows=rows, ref_model=tiny_llama(seed=3), precompute_ref_log_probs=True, generate_during_eval=True
    )

    assert torch.equal(trainer.reference.model.lm_head.weight, tiny_llama(seed=3).lm_head.weight)


def test_no_reference_is_kept_where_all_rows_have_the_column(tmp_path):
    assert bco_trainer(tmp_path).reference is None


def test_a_reference_pass_leaves_mode_and_gradients_of_the_policy_alone(tmp_path):
    trainer = bco_trainer(tmp_path, rows=ROWS, model=with_trained_adapter())
    trainer.model.train()
    trainable = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]

    reference_logps(trainer)

    assert trainer.model.training
    assert [name for name, weight in trainer.model.named_parameters() if weight.requires_grad] == trainable
