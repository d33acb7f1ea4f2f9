"""Slips of people who come from TRL: each is refused with a sentence, or said, and none is passed over."""

import logging

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from stages.models.value_head import AutoModelForCausalLMWithValueHead
from stages.trainers import BCOConfig, DPOConfig, DPOTrainer, KTOConfig, PPOConfig, RewardConfig, SFTConfig
from stages.trainers.ddpo.config import DDPOConfig
from stages.trainers.ppo.trainer import PPOTrainer
from tests.trainers.tiny import (
    bco_config,
    bco_trainer,
    dpo_trainer,
    lines,
    method_config,
    method_trainer,
    raw_pairs,
    raw_rows,
    tiny_llama,
    tiny_t5,
    tiny_tokenizer,
)
from tests.trainers.tiny_iterative import iterative_trainer
from tests.trainers.tiny_ppo import ppo_config, rollouts, tiny_policy, tiny_trainer
from tests.trainers.tiny_reward import documented_rows, reward_trainer
from tests.trainers.tiny_sft import TEXTS, sft_trainer

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIGS = (BCOConfig, KTOConfig, DPOConfig, SFTConfig, RewardConfig)


# ---- values of another kind, names of no argument ----


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (DPOConfig, {"beta": "0.1"}),
        (DPOConfig, {"beta": None}),
        (DPOConfig, {"loss_type": None}),
        (DPOConfig, {"loss_weights": 2.0}),
        (BCOConfig, {"max_length": "12"}),
        (BCOConfig, {"rpo_alpha": "1"}),
        (KTOConfig, {"desirable_weight": "2"}),
        (KTOConfig, {"precompute_ref_log_probs": "false"}),
        (SFTConfig, {"packing": "bfd"}),
        (SFTConfig, {"completion_only_loss": "yes"}),
        (RewardConfig, {"center_rewards_coefficient": "0.01"}),
        (SFTConfig, {"learning_rate": "1e-3"}),
    ],
)
def test_a_value_of_another_kind_is_refused_before_and_after_construction(tmp_path, config, given):
    ((name, value),) = given.items()
    made = config(str(tmp_path), use_cpu=True)

    with pytest.raises(ValueError, match=rf"expected {name} as .*found {value!r}"):
        config(str(tmp_path), use_cpu=True, **given)
    with pytest.raises(ValueError, match=rf"expected {name} as .*found {value!r}"):
        setattr(made, name, value)


@pytest.mark.parametrize(
    "given", [{"learning_rate": "1e-5"}, {"adap_kl_ctrl": "false"}, {"seed": None}, {"init_kl_coef": "0.2"}]
)
def test_ppo_refuses_a_value_of_another_kind(given):
    with pytest.raises(ValueError, match=f"expected {next(iter(given))} as"):
        ppo_config(**given)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_misspelt_argument_is_named_with_the_one_meant(tmp_path, config):
    made = config(str(tmp_path), use_cpu=True)
    made.my_note = "of the user's own"

    with pytest.raises(
        TypeError, match=rf"{config.__name__} takes no argument max_seq_length; did you mean max_length"
    ):
        config(str(tmp_path), max_seq_length=8)
    with pytest.raises(TypeError, match=r"docs/from-trl\.md"):
        config(str(tmp_path), quite_another=8)
    with pytest.raises(
        ValueError, match="has no learnig_rate, so setting it would do nothing; did you mean learning_r"
    ):
        made.learnig_rate = 1.0


@pytest.mark.parametrize("made", [PPOConfig(), DDPOConfig(mixed_precision="no")])
def test_configs_of_their_own_refuse_slips_too(made):
    with pytest.raises(
        ValueError, match="did you mean learning_rate" if hasattr(made, "learning_rate") else "train_lea"
    ):
        setattr(made, "learnin_rate" if hasattr(made, "learning_rate") else "train_learnin_rate", 1.0)


# ---- what is set once the trainer is made ----


def test_the_config_of_dpo_is_that_of_the_user(tmp_path):
    config = method_config("dpo", tmp_path)

    trainer = DPOTrainer(
        tiny_llama(), args=config, train_dataset=Dataset.from_list(raw_pairs()), processing_class=tiny_tokenizer()
    )
    config.max_steps = 1
    trainer.train()

    assert trainer.args is config
    assert len(lines(trainer)) == 1


@pytest.mark.parametrize("method", ["bco", "kto", "dpo"])
@pytest.mark.parametrize("name", ["args", "trainer"])
def test_beta_that_is_set_later_is_that_of_the_loss(tmp_path, method, name):
    expected = method_trainer(method, tmp_path, beta=0.7)
    trainer = method_trainer(method, tmp_path)

    (trainer.args if name == "args" else trainer).beta = 0.7

    expected.train()
    trainer.train()
    assert trainer.beta == 0.7
    assert [line["loss"] for line in lines(trainer)] == [line["loss"] for line in lines(expected)]


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (dpo_trainer, {"loss_type": "ipo"}),
        (dpo_trainer, {"precompute_ref_log_probs": True}),
        (bco_trainer, {"reward_shift_decay": 0.5}),
        (reward_trainer, {"max_length": 5}),
        (sft_trainer, {"packing": True}),
    ],
)
def test_what_was_read_already_cannot_be_set(tmp_path, make, setting):
    ((name, value),) = setting.items()
    trainer = make(tmp_path)

    setattr(trainer.args, name, value)

    with pytest.raises(ValueError, match=f"expected {name} as it was when the trainer was made.*make the trainer anew"):
        trainer.train()


# ---- models and references ----


@pytest.mark.parametrize("method", ["bco", "kto", "dpo"])
def test_one_adapter_cannot_be_policy_and_reference(tmp_path, method):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"), adapter_name="policy")

    with pytest.raises(ValueError, match="expected two adapters, found policy.*the reference would move"):
        method_trainer(method, tmp_path, model=model, model_adapter_name="policy", ref_adapter_name="policy")


@pytest.mark.parametrize("given", [{"reference_free": True}, {"loss_type": "simpo"}])
def test_a_reference_that_nothing_reads_is_said(tmp_path, caplog, given):
    with caplog.at_level(logging.WARNING):
        dpo_trainer(tmp_path, ref_model=tiny_llama(seed=3), **given)

    assert "the reference that was given has no effect" in caplog.text


def test_a_reference_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected ref_model of the policy's kind, found is_encoder_decoder True"):
        dpo_trainer(tmp_path, ref_model=tiny_t5(), rows=Dataset.from_list(raw_pairs()))


@pytest.mark.parametrize("model", [3, {"a": 1}])
def test_what_is_no_model_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match="model: expected a model of torch, or a folder or repository"):
        bco_trainer(tmp_path, model=model)
    with pytest.raises(ValueError, match="expected a model of torch, or a folder or repository"):
        AutoModelForCausalLMWithValueHead.from_pretrained(model)


def test_arguments_that_a_model_does_not_take_are_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")

    with pytest.raises(ValueError, match="model_init_kwargs: expected arguments that the model takes.*dtyp"):
        bco_trainer(tmp_path, model=str(tmp_path / "model"), model_init_kwargs={"dtyp": "bfloat16"})
    with pytest.raises(ValueError, match=r"give quantization_config=BitsAndBytesConfig\(load_in_8bit=True\)"):
        AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "model"), load_in_8bit=True)


def test_an_adapter_is_given_as_a_dict_to_a_value_head_and_never_as_text(tmp_path):
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM").to_dict()

    assert tiny_policy(peft_config=adapter).is_peft_model
    with pytest.raises(ValueError, match="peft_config: expected a configuration of peft.*found str 'lora'"):
        bco_trainer(tmp_path, peft_config="lora")


def test_a_value_head_is_uploaded_with_its_model(monkeypatch):
    uploaded = {}
    monkeypatch.setattr(
        "stages.models.value_head.upload",
        lambda folder, repo_id, **kwargs: uploaded.update(
            {"files": {file.name for file in folder.iterdir()}, "repo_id": repo_id, **kwargs}
        ),
    )

    tiny_policy().push_to_hub("somebody/model", private=True)

    assert {"model.safetensors", "value_head.safetensors"} <= uploaded["files"]
    assert (uploaded["repo_id"], uploaded["private"]) == ("somebody/model", True)


# ---- tokenizers and rows ----


def test_a_tokenizer_is_given_by_name(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "tokenizer"

    assert bco_trainer(tmp_path, processing_class=folder).tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert sft_trainer(tmp_path, tokenizer=str(folder)).tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize("precomputes", [False, True])
def test_a_token_that_the_model_does_not_have_is_refused(tmp_path, precomputes):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"much{number}" for number in range(20)])
    rows = Dataset.from_list([{**row, "prompt": "how much19"} for row in raw_pairs()])

    with pytest.raises(ValueError, match="expected token ids below 32, the embeddings of the model, found 4"):
        dpo_trainer(tmp_path, rows=rows, processing_class=tokenizer, precompute_ref_log_probs=precomputes).train()


@pytest.mark.parametrize("make", [bco_trainer, dpo_trainer, sft_trainer, reward_trainer])
def test_an_empty_list_has_no_rows(tmp_path, make):
    given = {"dataset_text_field": "text"} if make is sft_trainer else {}

    with pytest.raises(ValueError, match="expected rows, found none"):
        make(tmp_path, rows=[], **given)


@pytest.mark.parametrize("column", ["completions", "response"])
def test_completions_under_another_name_are_asked_for(tmp_path, column):
    rows = Dataset.from_list(raw_rows()).rename_column("completion", column)

    with pytest.raises(ValueError, match=f"expected a column completion, .*found .*{column}.*; rename the one"):
        bco_trainer(tmp_path, rows=rows)


@pytest.mark.parametrize(
    ("make", "column", "meant"),
    [
        (bco_trainer, "wehight", "weight"),
        (bco_trainer, "desired_weigth", "desired_weight"),
        (reward_trainer, "margins", "margin"),
    ],
)
def test_an_optional_column_that_is_misspelt_is_said(tmp_path, caplog, make, column, meant):
    rows = documented_rows(12) if make is reward_trainer else Dataset.from_list(raw_rows())

    with caplog.at_level(logging.WARNING):
        make(tmp_path, rows=rows.add_column(column, [2.0] * len(rows)))

    assert f"a column {column} isn't read; did you mean {meant}?" in caplog.text


def test_sft_names_the_row_that_holds_no_text(tmp_path):
    with pytest.raises(ValueError, match="row 12: expected a text in column text, found None"):
        sft_trainer(tmp_path, rows=Dataset.from_list([*TEXTS, {"text": None}]), dataset_text_field="text")


def test_iterative_sft_wants_a_text(tmp_path):
    with pytest.raises(ValueError, match="expected texts with at least one text, found none"):
        iterative_trainer(tmp_path).step(texts=[])


def test_ppo_asks_for_one_dataset_with_columns_that_are_read():
    rows = Dataset.from_dict({"inputids": [[6, 7]] * 8})

    for dataset, message in [
        (DatasetDict(train=rows), "one dataset, found DatasetDict of train"),
        (rows, "a column inp"),
    ]:
        with pytest.raises(ValueError, match=f"expected {message}"):
            PPOTrainer(ppo_config(), tiny_policy(), None, tiny_tokenizer(), dataset=dataset)


def test_ppo_asks_for_ids_as_integers():
    given = rollouts()

    with pytest.raises(ValueError, match="expected queries as token ids, found torch.float32 in row 0"):
        tiny_trainer().step([query.float() for query in given["queries"]], given["responses"], given["scores"])


def test_embeddings_of_another_shape_are_refused(tmp_path):
    rows = Dataset.from_list(raw_rows())

    with pytest.raises(ValueError, match=r"embedding_func: expected embeddings of shape \(\d+, d\), .*found \(3,\)"):
        method_trainer(
            "bco",
            tmp_path,
            rows=rows,
            embedding_func=lambda input_ids, attention_mask: torch.zeros(3),
            embedding_tokenizer=tiny_tokenizer(),
        )
    with pytest.raises(ValueError, match="expected prompt_sample_size above 0, found 0"):
        bco_config(tmp_path, prompt_sample_size=0)


def test_a_reference_of_one_completion_of_a_pair_is_refused(tmp_path):
    rows = Dataset.from_list([{**row, "reference_chosen_logps": -1.0} for row in raw_pairs()])

    with pytest.raises(
        ValueError, match="expected the columns reference_chosen_logps and reference_rejected_logps, fou"
    ):
        dpo_trainer(tmp_path, rows=rows)


def test_labels_that_leave_nothing_to_learn_are_said_and_refused_if_all_do(tmp_path, caplog):
    masked, learned = {"input_ids": [6, 7], "labels": [6, -100]}, {"input_ids": [6, 7], "labels": [-100, 7]}

    sft_trainer(tmp_path, rows=Dataset.from_list([masked, learned]))

    assert "nothing is learned of 1 of 2 rows" in caplog.text
    with pytest.raises(ValueError, match="expected labels of tokens to learn.*in all 2 rows"):
        sft_trainer(tmp_path, rows=Dataset.from_list([masked] * 2))


def test_sft_asks_for_completions_under_another_name(tmp_path):
    rows = Dataset.from_list([{"prompt": "what is", "completions": "good"}] * 4)

    with pytest.raises(ValueError, match="expected a column completion .*found prompt, completions; rename the one"):
        sft_trainer(tmp_path, rows=rows)


def test_a_row_longer_than_the_positions_that_a_model_learned_is_refused(tmp_path):
    rows = Dataset.from_list([{"text": "a sea " * 10}] * 4)
    sizes = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 1, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(n_positions=16, pad_token_id=0, **sizes))

    with pytest.raises(
        ValueError, match="expected rows of up to 16 tokens, the positions of the model, found one of 21"
    ):
        sft_trainer(tmp_path, model=model, rows=rows, dataset_text_field="text").train()
    sft_trainer(tmp_path, model=model, rows=rows, dataset_text_field="text", max_seq_length=16, max_steps=1).train()
