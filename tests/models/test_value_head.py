"""Models with a value head: passes, files, adapters, and layers shared with a reference."""

import json
from pickle import UnpicklingError

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FSMTConfig, FSMTForConditionalGeneration

from stages.models.conversion import convert
from stages.models.loading import load_causal_lm
from stages.models.shared_layers import create_reference_model
from stages.models.value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    ValueHead,
)
from tests.models.tiny import CONFIGS, tiny_model
from tests.trainers.tiny import tiny_llama, tiny_t5

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def ids_and_masks(*, side="right", vocabulary=97):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (2, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    completion = torch.tensor([[0, 0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 0, 0]])
    if side == "left":
        ids[1], mask[1], completion[1] = (tensor[1].roll(2) for tensor in (ids, mask, completion))
    return ids * mask, mask, completion


def lora(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def with_head(model, **arguments):
    torch.manual_seed(1)
    return AutoModelForCausalLMWithValueHead.from_pretrained(model, **arguments).eval()


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("side", ["right", "left"])
def test_scored_tokens_are_those_of_the_whole_logits(name, side):
    model = with_head(tiny_model(name))
    ids, mask, completion = ids_and_masks(side=side)

    with torch.no_grad():
        logits, loss, values = model(ids, attention_mask=mask)
        found = model(ids, attention_mask=mask, completion_mask=completion, with_entropies=True)

    assert loss is None
    assert logits.dtype == torch.float32
    is_own = completion[:, 1:].bool()
    logps = logits[:, :-1].log_softmax(-1)
    expected = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    torch.testing.assert_close(found.logps.token_logps[is_own], expected[is_own], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logps.entropies[is_own], entropies[is_own], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.values[is_own], values[:, :-1][is_own], rtol=1e-4, atol=1e-5)
    assert (found.logps.entropies[~is_own] == 0).all()


def test_p6_padding_on_the_left_moves_nothing():
    model = with_head(tiny_model("gpt2"))
    (right, right_mask, _), (left, left_mask, _) = ids_and_masks(), ids_and_masks(side="left")

    with torch.no_grad():
        logits, _, values = model(right, attention_mask=right_mask)
        moved_logits, _, moved_values = model(left, attention_mask=left_mask)

    torch.testing.assert_close(moved_logits[1, 2:], logits[1, :5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved_values[1, 2:], values[1, :5], rtol=1e-4, atol=1e-5)


def test_both_halves_of_a_pass_give_gradients():
    model = with_head(tiny_llama()).train()
    ids, mask, completion = ids_and_masks(vocabulary=32)

    found = model(ids, attention_mask=mask, completion_mask=completion)
    (found.logps.token_logps.sum() + found.values.sum()).backward()

    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_an_encoder_decoder_predicts_its_answer_and_the_values_before_each_token():
    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5()).eval()
    ids, mask, _ = ids_and_masks(vocabulary=32)
    answers = torch.tensor([[5, 6, 2], [7, 2, 0]])
    completion = torch.tensor([[1, 1, 1], [1, 1, 0]])

    with torch.no_grad():
        shifted = torch.tensor([[0, 5, 6], [0, 7, 2]])
        logits, _, values = model(ids, attention_mask=mask, decoder_input_ids=shifted)
        found = model(ids, attention_mask=mask, decoder_input_ids=answers, completion_mask=completion)

    expected = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
    torch.testing.assert_close(found.logps.token_logps, expected * completion, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.values, values)


def test_a_decoder_that_makes_logits_by_itself_has_values_of_its_last_hidden_states():
    torch.manual_seed(0)
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=32, tgt_vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(FSMTForConditionalGeneration(config)).eval()
    ids = torch.tensor([[5, 6, 7]])

    values = model(ids, decoder_input_ids=ids)[2]

    hidden = model.pretrained_model(ids, decoder_input_ids=ids, output_hidden_states=True).decoder_hidden_states[-1]
    torch.testing.assert_close(values, model.v_head(hidden))


def test_past_keys_are_given_back_when_asked_for():
    model = with_head(tiny_llama())
    ids, _, _ = ids_and_masks(vocabulary=32)

    with torch.no_grad():
        *whole, _ = model(ids, return_past_key_values=True)
        *_, past = model(ids[:, :4], return_past_key_values=True)
        rest, _, values = model(ids[:, 4:], past_key_values=past)

    torch.testing.assert_close(rest, whole[0][:, 4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, whole[2][:, 4:], rtol=1e-4, atol=1e-5)


def test_a_head_starts_as_a_linear_layer_or_normally():
    torch.manual_seed(0)
    normal = ValueHead(4000, v_head_init_strategy="normal", v_head_initializer_range=0.5)

    assert normal.summary.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert normal.summary.bias.item() == 0.0
    assert ValueHead(16).summary.weight.abs().max() <= 0.25  # one over the root of the width
    with pytest.raises(ValueError, match=r'as "normal" or None, found .zeros'):
        ValueHead(16, v_head_init_strategy="zeros")


def test_dropout_of_the_head_follows_the_arguments_then_the_models_config():
    plain, configured = tiny_llama(), tiny_llama()
    configured.config.summary_dropout_prob = 0.3

    assert with_head(plain).v_head.dropout.p == 0.1
    assert with_head(configured).v_head.dropout.p == 0.3
    assert with_head(configured, summary_dropout_prob=0.0).v_head.dropout.p == 0.0


def test_a_saved_model_comes_back_with_its_head_and_loads_without_it(tmp_path):
    model = with_head(tiny_llama(seed=3))
    model.save_pretrained(tmp_path)

    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    plain = load_causal_lm(tmp_path)

    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert torch.equal(plain.lm_head.weight, model.pretrained_model.lm_head.weight)


def test_a_head_among_the_models_weights_is_found(tmp_path):
    model = with_head(tiny_llama())
    model.save_pretrained(tmp_path)
    head = load_file(tmp_path / "value_head.safetensors")
    (tmp_path / "value_head.safetensors").unlink()
    weights = {**load_file(tmp_path / "model.safetensors"), **{f"v_head.{name}": value for name, value in head.items()}}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))

    assert torch.equal(again.v_head.summary.weight, model.v_head.summary.weight)


def as_trl_leaves_it(folder, kind):
    """A folder of a model with its head in the layout of TRL, and the model."""
    base = tiny_llama(seed=3)
    if kind == "adapter":
        base.save_pretrained(folder / "base")
        model = with_head(AutoModelForCausalLM.from_pretrained(folder / "base"), peft_config=lora())
    else:
        model = with_head(base)
    head = {f"v_head.{name}": weight for name, weight in model.v_head.state_dict().items()}
    if kind == "adapter":
        model.pretrained_model.save_pretrained(folder, save_embedding_layers=False)
        torch.save(head, folder / "pytorch_model.bin")
        return model
    weights = {**model.pretrained_model.state_dict(), **head}
    if kind == "shards":
        base.save_pretrained(folder, state_dict=weights, max_shard_size="6KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        return model
    base.config.save_pretrained(folder)
    names = sorted(weights)
    shards = {"pickle": [names], "pickled shards": [names[::2], names[1::2]]}[kind]
    files = ["pytorch_model.bin"] if len(shards) == 1 else [f"pytorch_model-0000{i + 1}-of-00002.bin" for i in range(2)]
    for file, part in zip(files, shards, strict=True):
        torch.save({name: weights[name] for name in part}, folder / file)
    if len(shards) > 1:
        places = {name: file for file, part in zip(files, shards, strict=True) for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return model


@pytest.mark.parametrize("kind", ["shards", "adapter", "pickle", "pickled shards"])
@pytest.mark.parametrize("way", ["converted", "read"])
def test_a_head_that_trl_saved_is_found_or_asked_for(tmp_path, kind, way):
    model = as_trl_leaves_it(tmp_path, kind)
    chosen = {}
    if kind != "shards":
        with pytest.raises(
            ValueError, match=r"found pytorch_model.*bin, a pickle.*pipelines convert .*use_safetensors"
        ):
            AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
        if way == "converted":
            before = {file.name for file in tmp_path.iterdir()}
            written = {file.name for file in convert(tmp_path)}
            assert written == {file.name for file in tmp_path.iterdir()} - before
        else:
            chosen = {"use_safetensors": False}

    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, **chosen)

    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


class Opens:
    """A thing whose pickle would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_pickle_is_run(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path)
    torch.save({"v_head.summary.weight": Opens(tmp_path / "run")}, tmp_path / "pytorch_model.bin")

    with pytest.raises(ValueError, match=r"pytorch_model.bin: expected a pickle of tensors alone"):
        convert(tmp_path)
    with pytest.raises(UnpicklingError):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, use_safetensors=False)

    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_nothing_is_converted_over_what_is_there(tmp_path):
    as_trl_leaves_it(tmp_path, "pickle")
    convert(tmp_path)

    with pytest.raises(ValueError, match=r"model.safetensors: expected no such file yet"):
        convert(tmp_path)
    with pytest.raises(ValueError, match="expected pytorch_model.bin, its shards or adapter_model.bin, found none"):
        convert(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_without_a_head_for_tokens_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a model with a head that predicts tokens.*AutoModelForCausalLM"):
        with_head(tiny_model(name).base_model)


def test_weights_gathered_elsewhere_are_what_is_saved(tmp_path):
    model = with_head(tiny_llama())
    gathered = {name: weight + 1.0 for name, weight in model.state_dict().items()}

    model.save_pretrained(tmp_path, state_dict=gathered)

    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    for name, weight in gathered.items():
        assert torch.equal(again.state_dict()[name], weight)


def test_an_adapter_is_saved_and_loaded_with_the_head_and_goes_on_learning(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = with_head(base, peft_config=lora())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)

    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "adapter"))

    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2
    assert again.is_peft_model
    assert not again.has_new_adapter
    learned = {name for name, weight in again.named_parameters() if weight.requires_grad}
    assert learned == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.partition(".")[0] for name in learned} == {"pretrained_model", "v_head"}
    ids, mask, _ = ids_and_masks(vocabulary=32)
    with torch.no_grad():
        for found, expected in zip(
            again.eval()(ids, attention_mask=mask), model(ids, attention_mask=mask), strict=True
        ):
            assert found is expected is None or torch.allclose(found, expected, atol=1e-5)


def test_an_adapter_beneath_a_new_one_becomes_part_of_the_base():
    trained = get_peft_model(tiny_llama(), lora())
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    ids = ids_and_masks(vocabulary=32)[0][:1]  # the row without padding
    expected = trained(ids).logits

    model = with_head(trained, peft_config=lora())

    with torch.no_grad(), model.pretrained_model.disable_adapter():
        torch.testing.assert_close(model(ids)[0], expected, rtol=1e-4, atol=1e-4)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_of_few_bits_keeps_activations_unless_asked_not_to(bits):
    model = tiny_llama()
    setattr(model, f"is_loaded_in_{bits}bit", True)
    layer = model.model.layers[0].mlp.up_proj
    layer.support_avx512bf16_for_cpu = True

    adapted = with_head(model, peft_config=lora())

    assert not adapted.get_base_model().model.gradient_checkpointing
    assert not layer.support_avx512bf16_for_cpu


def test_reentrant_checkpointing_reaches_an_adapter():
    model = with_head(tiny_llama(), peft_config=lora()).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    ids, mask, _ = ids_and_masks(vocabulary=32)

    model(ids, attention_mask=mask)[0].sum().backward()

    learned = {name: weight.grad for name, weight in model.pretrained_model.named_parameters() if weight.requires_grad}
    assert all(gradient is not None for gradient in learned.values())


def test_samples_as_the_model_does():
    model = tiny_llama()
    ids = torch.tensor([[5, 6, 7]])

    found = with_head(model).generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)

    expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert torch.equal(found, expected)


def test_names_the_class_for_the_other_kind_of_model():
    with pytest.raises(ValueError, match="take AutoModelForSeq2SeqLMWithValueHead"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_t5())
    with pytest.raises(ValueError, match="take AutoModelForCausalLMWithValueHead"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_llama())


def test_an_adapter_to_score_with_is_refused():
    with pytest.raises(ValueError, match="reward_adapter: expected scores of a model of its own"):
        with_head(tiny_llama(), reward_adapter="somewhere")


def test_arguments_of_loading_need_something_to_load():
    with pytest.raises(ValueError, match="expected dtype only with a model to load"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_llama(), dtype="bfloat16")


# ---- shared layers ----


@pytest.mark.parametrize(("number", "names"), [(0, 1), (1, 10), (2, 19)])
def test_p11_shared_layers_stand_in_memory_once_and_are_frozen(number, names):
    model = with_head(tiny_llama())

    reference = create_reference_model(model, num_shared_layers=number)

    pairs = zip(model.named_parameters(), reference.named_parameters(), strict=True)
    shared = {name for (name, one), (_, other) in pairs if one.data_ptr() == other.data_ptr()}
    assert len(shared) == names
    assert "pretrained_model.model.embed_tokens.weight" in shared
    assert all(f".layers.{number}." not in name for name in shared)
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == shared
    assert not any(weight.requires_grad for weight in reference.parameters())


def test_p11_a_shared_layer_stays_shared_when_models_are_cast():
    model = with_head(tiny_llama())
    reference = create_reference_model(model, num_shared_layers=1)

    model.double()
    reference.double()

    one, other = (each.pretrained_model.model.layers for each in (model, reference))
    assert one[0].mlp.up_proj.weight.data_ptr() == other[0].mlp.up_proj.weight.data_ptr()
    assert one[1].mlp.up_proj.weight.data_ptr() != other[1].mlp.up_proj.weight.data_ptr()


def test_nothing_is_shared_or_frozen_without_a_number():
    model = with_head(tiny_llama())

    reference = create_reference_model(model)

    assert all(weight.requires_grad for weight in model.parameters())
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    assert not reference.training


def test_layers_are_found_by_a_pattern_and_in_other_models():
    by_pattern = create_reference_model(tiny_model("gpt2"), 1, "transformer.h.{layer}")
    found = create_reference_model(model := tiny_model("gpt2"), 1)

    assert [name for name, _ in by_pattern.named_parameters()] == [name for name, _ in found.named_parameters()]
    assert found.transformer.wpe.weight.data_ptr() == model.transformer.wpe.weight.data_ptr()
    assert found.transformer.h[1].ln_1.weight.data_ptr() != model.transformer.h[1].ln_1.weight.data_ptr()


def test_an_encoder_is_below_the_decoders_layers():
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5())

    reference = create_reference_model(model, 1)

    one, other = (each.pretrained_model for each in (model, reference))
    assert all(a is b for a, b in zip(one.encoder.parameters(), other.encoder.parameters(), strict=True))
    assert one.decoder.block[1].layer[0].SelfAttention.q.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3,), "from 0 to the model's 2 layers, found 3"), ((1, "encoder.{layer}"), "to name a list of layers")],
)
def test_says_which_layers_there_are(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_reference_model(with_head(tiny_llama()), *arguments)


def test_an_adapter_shares_all_layers_anyway():
    with pytest.raises(ValueError, match="expected num_shared_layers None for a model with an adapter"):
        create_reference_model(with_head(tiny_llama(), peft_config=lora()), 1)
