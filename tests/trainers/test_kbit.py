"""Adapters on models whose weights are held in 4 or 8 bits, by bitsandbytes, which computes on the CPU as well."""

import json
import math
from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from stages.rows.collation import PreferenceCollator
from stages.rows.raw import RowReader
from tests.trainers.tiny import bco_trainer, raw_rows, tiny_llama

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="weights of 4 and 8 bits need bitsandbytes; pip install bitsandbytes"
)
ROWS = Dataset.from_list(raw_rows())
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_llama().save_pretrained(folder)
    return str(folder)


def lora():
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")


def made(folder, saved, kind, **arguments):
    quantization = BitsAndBytesConfig(**{**KINDS[kind], **arguments.pop("quantization", {})})
    return bco_trainer(
        folder,
        model=saved,
        rows=ROWS,
        peft_config=lora(),
        model_init_kwargs={"quantization_config": quantization},
        **arguments,
    )


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def of_linear_layers(trainer):
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module.weight for name, module in trainer.model.named_modules() if isinstance(module, kinds)}


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_on_a_base_of_few_bits_that_stays_as_it_was(tmp_path, saved, kind):
    trainer = made(tmp_path, saved, kind, max_steps=30, beta=0.5)
    before = {name: weight.detach().clone() for name, weight in of_linear_layers(trainer).items()}

    trainer.train()

    assert losses(trainer)[0] == pytest.approx(math.log(2), rel=1e-3)
    assert losses(trainer)[-1] < 0.6
    assert len(before) == 14
    for name, weight in of_linear_layers(trainer).items():
        assert weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind]
        assert torch.equal(weight, before[name])
    trainable = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_base_of_few_bits_without_the_adapter(tmp_path, saved, kind):
    trainer = made(tmp_path, saved, kind, max_steps=5)
    trainer.train()
    batch = PreferenceCollator(0)(trainer.train_dataset.to_list())
    # In training mode, since in the other one bitsandbytes repacks layers of 4 bits in ways that want other widths.
    plain = AutoModelForCausalLM.from_pretrained(saved, quantization_config=BitsAndBytesConfig(**KINDS[kind])).train()

    found = trainer.reference_logps_of(batch)

    with torch.no_grad():
        torch.testing.assert_close(found, trainer.logps_of(plain, batch).logps, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(trainer.logps_of(trainer.model, batch).logps, found, atol=1e-2)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_quantised_is_held_in_full_precision(tmp_path, saved, kind):
    trainer = made(tmp_path, saved, kind)

    policy = trainer.model.base_model.model.model
    assert policy.norm.weight.dtype == torch.float32
    assert policy.embed_tokens.weight.dtype == torch.float32


@needs_bitsandbytes
def test_4_bits_and_bf16_compute_adapters_in_bf16_and_norms_in_fp32(tmp_path, saved):
    quantization = {"bnb_4bit_compute_dtype": torch.bfloat16}
    trainer = made(tmp_path, saved, "nf4", quantization=quantization, bf16=True, max_steps=30, beta=0.5)

    trainer.train()

    types = {name: weight.dtype for name, weight in trainer.model.named_parameters()}
    assert {kind for name, kind in types.items() if "lora_" in name} == {torch.bfloat16}
    assert {kind for name, kind in types.items() if "norm" in name} == {torch.float32}
    assert losses(trainer)[0] == pytest.approx(math.log(2), rel=1e-2)
    assert losses(trainer)[-1] < 0.65


@needs_bitsandbytes
@pytest.mark.parametrize("bf16", [False, True])
def test_it_samples_while_it_evaluates(tmp_path, saved, bf16):
    trainer = made(tmp_path, saved, "nf4", eval_dataset=ROWS, generate_during_eval=True, max_length=16, bf16=bf16)

    metrics = trainer.evaluate()

    assert math.isfinite(metrics["eval_loss"])
    assert len((tmp_path / "samples" / "eval-0.jsonl").read_text().splitlines()) == 4


@needs_bitsandbytes
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_computed_again_give_the_same_losses(tmp_path, saved, kind, reentrant):
    found = []
    for settings in (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        trainer = made(tmp_path, saved, kind, **settings)
        trainer.train()
        found.append(losses(trainer))

    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] != found[0][-1]


@needs_bitsandbytes
def test_only_the_adapter_is_saved(tmp_path, saved):
    trainer = made(tmp_path, saved, "nf4")
    trainer.train()

    trainer.save_model(str(tmp_path / "saved"))

    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"] == saved
    assert (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size < 100_000


@needs_bitsandbytes
def test_gradients_reach_the_lowest_layer_after_a_pass_of_the_reference(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    trainer = made(tmp_path, str(tmp_path / "wide"), "nf4", max_steps=1)
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    trainer.model.train()

    def gradient():
        trainer.model.zero_grad()
        trainer.logps_of(trainer.model, batch).logps.sum().backward()
        lowest = trainer.model.base_model.model.model.layers[0].self_attn.v_proj
        return lowest.lora_B["default"].weight.grad.clone()

    before = gradient()
    trainer.reference_logps_of(batch)

    torch.testing.assert_close(gradient(), before)


def flagged(model):
    """What a model of 8 bits says of itself; nothing else of it is needed to be refused or made ready."""
    model.is_loaded_in_8bit = True
    return model


def test_weights_of_few_bits_without_an_adapter_are_refused_before_rows_are_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(RowReader, "labelled", lambda *_, **__: pytest.fail("rows were encoded"))

    with pytest.raises(ValueError, match="expected peft_config with a model of 4 or 8 bits"):
        bco_trainer(tmp_path, model=flagged(tiny_llama()), rows=ROWS)


def test_half_precision_around_weights_of_few_bits_becomes_full_and_only_the_adapter_trains(tmp_path):
    trainer = bco_trainer(tmp_path, model=flagged(tiny_llama().to(torch.bfloat16)), rows=ROWS, peft_config=lora())

    weights = dict(trainer.model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in weights.items())
