"""Completion log-probabilities against a plain log-softmax over all logits."""

import copy

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.models import logprobs
from stages.models.logprobs import completion_logps
from tests.models.tiny import CONFIGS, tiny_model

# peft 0.21 asks transformers 5.23 for an attribute by a name that has become another.
old_name_in_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def make_batch():
    """Four rows of 12: full, padded right, padded left, and one without completion."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 97, (4, 12), generator=generator)
    attention_mask, completion_mask = torch.ones_like(input_ids), torch.zeros_like(input_ids)
    attention_mask[1, 9:] = 0
    attention_mask[2, :3] = 0
    completion_mask[0, 5:] = 1
    completion_mask[1, 4:9] = 1
    completion_mask[2, 6:] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def plain_token_logps(model, input_ids, attention_mask, completion_mask):
    logits = plain_logits(model, input_ids, attention_mask).log_softmax(-1)
    return logits[:, :-1].gather(-1, input_ids[:, 1:, None]).squeeze(-1) * completion_mask[:, 1:]


def plain_logits(model, input_ids, attention_mask):
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
    return outputs.logits.float()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(params=["kept", "computed again"])
def _backward_logits(request, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_LOGITS_BYTES", 2**30 if request.param == "kept" else 0)


@pytest.mark.usefixtures("_backward_logits")
@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_a_plain_log_softmax_in_values_and_all_gradients(name, chunk_size):
    model, batch, weights = tiny_model(name), make_batch(), torch.tensor([1.0, -2.0, 0.5, 3.0])
    expected = plain_token_logps(model, **batch)
    expected_gradients = gradients(model, (expected.sum(-1) * weights).sum())

    result = completion_logps(model, **batch, chunk_size=chunk_size)
    found_gradients = gradients(model, (result.logps * weights).sum())

    torch.testing.assert_close(result.token_logps, expected, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(result.logps, expected.sum(-1), rtol=1e-6, atol=5e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    for weight, gradient in expected_gradients.items():
        scale = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(found_gradients[weight] / scale, gradient / scale, rtol=1e-5, atol=5e-6)


def test_gradients_of_single_tokens_are_those_of_a_plain_log_softmax():
    model, batch = tiny_model("llama"), make_batch()
    weights = torch.randn(4, 11, generator=torch.Generator().manual_seed(2))
    expected = gradients(model, (plain_token_logps(model, **batch) * weights).sum())

    found = gradients(model, (completion_logps(model, **batch, chunk_size=5).token_logps * weights).sum())

    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, rtol=1e-4, atol=1e-5)


def test_counts_tokens_and_gives_zero_for_a_row_without_completion():
    result = completion_logps(tiny_model("llama"), **make_batch())

    assert result.num_tokens.tolist() == [7, 5, 6, 0]
    assert result.logps[3] == 0
    assert result.mean_logits[3] == 0
    assert not result.mean_logits.requires_grad


def test_a_batch_without_any_completion_gives_zeros_that_can_be_differentiated():
    model, batch = tiny_model("llama"), make_batch()
    batch["completion_mask"].zero_()

    result = completion_logps(model, **batch)
    result.logps.sum().backward()

    assert result.logps.tolist() == [0, 0, 0, 0]


def test_the_first_column_of_the_completion_mask_is_not_read():
    model, batch = tiny_model("llama"), make_batch()
    expected = completion_logps(model, **batch).logps
    batch["completion_mask"][:, 0] = 1

    assert torch.equal(completion_logps(model, **batch).logps, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2_softcap"])
def test_mean_logits_are_means_over_completion_tokens_and_vocabulary(name):
    model, batch = tiny_model(name), make_batch()
    means = plain_logits(model, batch["input_ids"], batch["attention_mask"]).mean(-1)[:, :-1]
    mask = batch["completion_mask"][:, 1:]

    result = completion_logps(model, **batch, chunk_size=4)

    expected = (means * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    torch.testing.assert_close(result.mean_logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_collision_entropies_are_sums_over_completion_tokens(name):
    model, batch = tiny_model(name), make_batch()
    probabilities = plain_logits(model, batch["input_ids"], batch["attention_mask"]).softmax(-1)[:, :-1]
    expected = (-probabilities.square().sum(-1).log() * batch["completion_mask"][:, 1:]).sum(-1)

    result = completion_logps(model, **batch, chunk_size=3, with_collision_entropies=True)

    torch.testing.assert_close(result.collision_entropies, expected.detach(), rtol=1e-5, atol=1e-5)
    assert not result.collision_entropies.requires_grad
    assert completion_logps(model, **batch).collision_entropies is None


def test_padding_on_the_other_side_gives_the_same_values():
    model, batch = tiny_model("gpt2"), make_batch()
    shifted = {name: tensor[1:2].roll(3, dims=1) for name, tensor in batch.items()}

    left = completion_logps(model, **shifted)

    right = completion_logps(model, **{name: tensor[1:2] for name, tensor in batch.items()})
    torch.testing.assert_close(left.logps, right.logps)


@pytest.mark.parametrize("name", ["llama", "gemma2_softcap"])
def test_bfloat16_is_close_to_float32(name):
    batch = make_batch()
    expected = completion_logps(tiny_model(name), **batch)

    result = completion_logps(tiny_model(name, dtype=torch.bfloat16), **batch)
    result.logps.sum().backward()

    assert result.logps.dtype == torch.float32
    torch.testing.assert_close(result.logps, expected.logps, rtol=0.02, atol=0.5)


def test_under_autocast_the_head_computes_in_its_type_and_weights_keep_theirs():
    model, batch = tiny_model("llama"), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain_token_logps(model, **batch)
        expected_gradients = gradients(model, expected.sum())
        result = completion_logps(model, **batch)

    found = gradients(model, result.logps.sum())
    torch.testing.assert_close(result.token_logps, expected, rtol=0.02, atol=0.02)
    head = "lm_head.weight"
    assert found[head].dtype == torch.float32
    torch.testing.assert_close(found[head], expected_gradients[head], rtol=0.05, atol=0.05)


def test_gradient_checkpointing_changes_no_gradient():
    model, batch = tiny_model("llama"), make_batch()
    expected = gradients(model, completion_logps(model, **batch).logps.sum())
    model.train()
    model.activation_checkpointing_enable()

    found = gradients(model, completion_logps(model, **batch).logps.sum())

    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@old_name_in_peft
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_an_adapter_gets_the_gradients_of_a_plain_log_softmax_also_on_the_head(targets):
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model, batch = peft.get_peft_model(tiny_model("granite_logits_scaling"), config).eval(), make_batch()
    expected = plain_token_logps(model, **batch)
    expected_gradients = gradients(model, expected.sum())

    result = completion_logps(model, **batch, chunk_size=4)

    torch.testing.assert_close(result.token_logps, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, result.logps.sum()).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5)


@old_name_in_peft
def test_learned_prompt_vectors_stand_before_the_tokens():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, batch = peft.get_peft_model(tiny_model("llama"), config).eval(), make_batch()
    full = {name: tensor[:1] for name, tensor in batch.items()}

    result = completion_logps(model, **full)

    logits = model(input_ids=full["input_ids"], attention_mask=full["attention_mask"]).logits[:, 3:].log_softmax(-1)
    expected = logits[:, :-1].gather(-1, full["input_ids"][:, 1:, None]).squeeze(-1) * full["completion_mask"][:, 1:]
    torch.testing.assert_close(result.token_logps, expected, rtol=1e-5, atol=1e-5)


def test_a_wrapper_around_the_model_runs_its_own_forward():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.module(*args, **kwargs)

    model, batch = tiny_model("llama"), make_batch()
    wrapped = Wrapper(model)

    result = completion_logps(wrapped, **batch)

    assert wrapped.calls == 1
    assert torch.equal(result.logps, completion_logps(model, **batch).logps)


def test_a_mixture_of_experts_gives_its_own_loss_for_balance():
    model, batch = tiny_model("mixtral"), make_batch()
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).aux_loss

    result = completion_logps(model, **batch)

    torch.testing.assert_close(result.aux_loss, expected)
    assert completion_logps(tiny_model("llama"), **batch).aux_loss is None


class LargestTensor(TorchDispatchMode):
    """Records the most entries of any tensor that an operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
def test_no_tensor_of_the_size_of_all_logits_is_made_in_either_direction(kept_bytes, monkeypatch):
    monkeypatch.setattr(logprobs, "KEPT_LOGITS_BYTES", kept_bytes)
    config = copy.deepcopy(CONFIGS["llama"])
    config.vocab_size = 4096
    model = type(tiny_model("llama"))(config)
    batch = {"input_ids": torch.randint(3, 4096, (4, 48)), "attention_mask": torch.ones(4, 48, dtype=torch.long)}
    completion_mask = (torch.arange(48) >= 24).long().expand(4, 48)

    with LargestTensor() as largest:
        completion_logps(model, **batch, completion_mask=completion_mask, chunk_size=16).logps.sum().backward()

    # The head itself, 4096 x 32, is larger than the 16 x 4096 logits of a chunk; all logits would be 4 x 48 x 4096.
    assert largest.entries <= 4096 * 32


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_a_fixed_shape_a_row_has_the_same_bits_beside_any_neighbours(name):
    model = tiny_model(name)
    batch = {key: value.repeat(2, 1) for key, value in make_batch().items()}
    expected = completion_logps(model, **batch, chunk_size=16, fixed_shape=True)
    others = {key: torch.cat([value[:1], value[1:].flip(0)]) for key, value in batch.items()}
    others["input_ids"][1:] = 5
    others["completion_mask"][1:] = torch.randint(0, 2, (7, 12), generator=torch.Generator().manual_seed(3))

    result = completion_logps(model, **others, chunk_size=16, fixed_shape=True)

    assert torch.equal(result.token_logps[0], expected.token_logps[0])
    assert torch.equal(result.logps[0], expected.logps[0])


def test_shapes_that_differ_are_named():
    batch = make_batch()
    batch["completion_mask"] = batch["completion_mask"][:, 1:]

    with pytest.raises(ValueError, match=r"expected ids and masks of one shape"):
        completion_logps(tiny_model("llama"), **batch)


def test_a_chunk_needs_a_position():
    with pytest.raises(ValueError, match="chunks of at least 1"):
        completion_logps(tiny_model("llama"), **make_batch(), chunk_size=0)


def test_a_model_that_does_something_unknown_to_its_logits_is_refused():
    model = tiny_model("llama")
    forward = model.forward

    def squared(**inputs):
        outputs = forward(**inputs)
        outputs.logits = outputs.logits.square()
        return outputs

    model.forward = squared

    with pytest.raises(ValueError, match="neither a scale nor a soft cap"):
        completion_logps(model, **make_batch())


def test_a_model_with_a_bias_for_each_token_after_its_head_is_refused():
    model = tiny_model("llama")
    model.register_forward_hook(
        lambda module, inputs, outputs: setattr(outputs, "logits", outputs.logits + torch.ones(97))
    )

    with pytest.raises(ValueError, match="a logit bias of its own"):
        completion_logps(model, **make_batch())


def test_a_model_without_output_head_is_refused():
    with pytest.raises(ValueError, match="with an output head, found LlamaModel"):
        completion_logps(tiny_model("llama").model, **make_batch())
