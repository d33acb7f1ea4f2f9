"""BCOTrainer takes each kind of data, model and documented argument to the end of a training."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from stages.rows.collation import PreferenceCollator
from tests.trainers.tiny import (
    bco_trainer,
    embed,
    encoded_rows,
    raw_rows,
    shifted_rows,
    tiny_llama,
    tiny_mixtral,
    tiny_t5,
    tiny_tokenizer,
)

ROWS = Dataset.from_list(raw_rows())


def lines(trainer, name="loss"):
    return [line for line in trainer.state.log_history if name in line]


def said(role, content):
    return [{"role": role, "content": content}]


def plain(index):
    return {"prompt": "what is", "completion": f" sea {'good' if index % 2 else 'bad'}", "label": index % 2 == 1}


def conversational(index):
    row = plain(index)
    return {**row, "prompt": said("user", row["prompt"]), "completion": said("assistant", row["completion"].strip())}


def paired(index):
    return {"prompt": "what is", "chosen": " sea good", "rejected": " sea bad"}


def paired_conversational(index):
    return {name: said("user" if name == "prompt" else "assistant", text) for name, text in paired(index).items()}


def paired_without_prompt(index):
    return {"chosen": "what is sea good", "rejected": "what is sea bad"}


LAYOUTS = [plain, conversational, paired, paired_conversational, paired_without_prompt]


# ---- data ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_learns_from_raw_rows_of_each_layout(tmp_path, layout):
    rows = Dataset.from_list([layout(index) for index in range(8)])
    trainer = bco_trainer(tmp_path, rows=rows, eval_dataset=rows, max_steps=12, beta=1.0)

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert trainer.evaluate()["eval_rewards/margins"] > 0.5


# ---- models ----


@pytest.mark.parametrize("settings", [{}, {"precompute_ref_log_probs": True}])
def test_a_model_init_makes_an_encoder_decoder_if_the_config_says_so(tmp_path, settings):
    trainer = bco_trainer(tmp_path, model_init=tiny_t5, rows=ROWS, is_encoder_decoder=True, **settings)

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert "decoder_input_ids" in trainer.data_collator(trainer.train_dataset.to_list())


def test_a_model_init_gets_its_adapter_anew_with_each_training(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = bco_trainer(tmp_path, model_init=tiny_llama, rows=ROWS, peft_config=adapter)

    histories = []
    for _ in range(2):
        trainer.train()
        histories.append([line["loss"] for line in lines(trainer)])

    assert histories[0] == histories[1]
    assert all("lora_" in name for name, weight in trainer.model.named_parameters() if weight.requires_grad)


def qwen_moe(**settings):
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        shared_expert_intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval()


@pytest.mark.parametrize("made", [tiny_mixtral, qwen_moe])
def test_the_balance_loss_of_experts_is_part_of_the_loss_in_training_and_evaluation(tmp_path, made):
    found = {}
    for coefficient in (0.0, 0.5):
        model = made(output_router_logits=True, router_aux_loss_coef=coefficient)
        trainer = bco_trainer(tmp_path, model=model, eval_dataset=encoded_rows(4), max_steps=1)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        found[coefficient] = (before, lines(trainer)[0]["loss"])

    # balanced experts give an auxiliary loss of the number of experts per token, here 2
    for without, with_it in zip(found[0.0], found[0.5], strict=True):
        assert with_it - without == pytest.approx(0.5 * 2, rel=0.2)


# ---- UDM ----


def test_a_training_with_an_embedding_function_goes_on_to_the_same_weights(tmp_path):
    def made(folder, **arguments):
        udm = {"embedding_func": embed, "embedding_tokenizer": tiny_tokenizer()}
        steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
        return bco_trainer(folder, rows=shifted_rows(), **udm, **steps, **arguments)

    whole = made(tmp_path)
    whole.train()

    resumed = made(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert resumed.method_state() == whole.method_state()
    assert set(resumed.method_state()) == {"rewards", "prompts"}


# ---- arguments, of both vintages ----


@pytest.mark.parametrize(
    "settings",
    [
        {"group_by_length": True},
        {"adafactor": True},
        {"warmup_ratio": 0.5},
        {"gradient_checkpointing": True},
        {"evaluation_strategy": "steps", "eval_steps": 2, "per_device_train_batch_size": 3},
        {"dataloader_num_workers": 1},
        {"neftune_noise_alpha": 5.0},
        {"optim": "adafactor", "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}},
        {"include_num_input_tokens_seen": True},
        {"remove_unused_columns": False},
        {"full_determinism": False, "data_seed": 7, "dataloader_drop_last": True},
        {"torch_empty_cache_steps": 1, "per_gpu_eval_batch_size": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_documented_argument_reaches_the_end_of_a_training(tmp_path, settings):
    model = tiny_llama()
    before = model.lm_head.weight.detach().clone()
    trainer = bco_trainer(tmp_path, model=model, eval_dataset=encoded_rows(5), **settings)

    trainer.train()

    assert trainer.state.global_step == 3
    assert all(math.isfinite(line["loss"]) for line in lines(trainer))
    assert not torch.equal(before, trainer.model.lm_head.weight)


def test_the_best_model_is_loaded_at_the_end_with_what_its_method_keeps(tmp_path):
    trainer = bco_trainer(
        tmp_path, rows=ROWS, eval_dataset=ROWS, max_steps=4, learning_rate=3e-2, beta=1.0, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="rewards/margins", greater_is_better=False,
    )  # fmt: skip

    trainer.train()

    margins = [line["eval_rewards/margins"] for line in lines(trainer, "eval_rewards/margins")]
    best = margins.index(min(margins))
    assert trainer.state.best_metric == min(margins)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best + 1}")
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(min(margins), rel=1e-5)


@pytest.mark.parametrize("by_batch", [False, True])
def test_metrics_may_be_computed_at_once_or_by_batch_and_see_the_inputs(tmp_path, by_batch):
    seen = []

    def compute(prediction, compute_result=True):
        seen.append((prediction.predictions.shape, np.shape(prediction.inputs), compute_result))
        return {"number": len(seen)} if compute_result else {}

    trainer = bco_trainer(
        tmp_path, eval_dataset=encoded_rows(6), compute_metrics=compute, batch_eval_metrics=by_batch,
        per_device_eval_batch_size=3, include_inputs_for_metrics=True,
    )  # fmt: skip
    metrics = trainer.evaluate()

    assert metrics["eval_number"] == (2 if by_batch else 1)
    assert [shape[0] for shape, _, _ in seen] == ([3, 3] if by_batch else [6])
    # one batch comes with all of its tensors, the whole with the ids alone
    assert [len(inputs) for _, inputs, _ in seen] == ([0, 0] if by_batch else [2])


def test_a_custom_collator_may_be_given_without_a_tokenizer(tmp_path):
    from stages.trainers.bco.trainer import BCOTrainer
    from tests.trainers.tiny import bco_config

    trainer = BCOTrainer(
        tiny_llama(), args=bco_config(tmp_path), train_dataset=encoded_rows(), data_collator=PreferenceCollator(0)
    )
    trainer.train()

    assert trainer.state.global_step == 3


def test_smoothing_of_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected label_smoothing_factor 0, found 0.1"):
        bco_trainer(tmp_path, label_smoothing_factor=0.1)
