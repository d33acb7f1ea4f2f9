"""Arguments of trainers in every type that their documentation or transformers allows, said before or after."""

import re
from functools import partial

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, TrainingArguments

from stages.models.value_head import AutoModelForCausalLMWithValueHead
from stages.rows.packing import ConstantLengthDataset
from stages.trainers import (
    BCOConfig,
    DataCollatorForCompletionOnlyLM,
    DPOConfig,
    DPOTrainer,
    IterativeSFTTrainer,
    KTOConfig,
    PPOTrainer,
    RewardConfig,
    SFTConfig,
    SFTTrainer,
)
from stages.trainers.core.arguments import FORMER_ARGUMENTS
from stages.trainers.ddpo.config import DDPOConfig
from stages.trainers.ddpo.setup import make_accelerator
from tests.trainers.tiny import (
    encoded_rows,
    lines,
    method_config,
    method_trainer,
    raw_pairs,
    raw_rows,
    tiny_llama,
    tiny_t5,
    tiny_tokenizer,
)
from tests.trainers.tiny_ppo import ppo_config, tiny_policy, tiny_trainer
from tests.trainers.tiny_reward import documented_rows, reward_config, reward_trainer, tiny_classifier
from tests.trainers.tiny_sft import TEXTS, sft_config, sft_trainer

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIGS = (BCOConfig, KTOConfig, DPOConfig, SFTConfig, RewardConfig)
TRAINERS = {
    "bco": lambda *args, **kwargs: method_trainer("bco", *args, **kwargs),
    "kto": lambda *args, **kwargs: method_trainer("kto", *args, **kwargs),
    "dpo": lambda *args, **kwargs: method_trainer("dpo", *args, **kwargs),
    "sft": lambda *args, **kwargs: sft_trainer(*args, **{"dataset_text_field": "text", **kwargs}),
    "reward": reward_trainer,
}
ROWS = {
    "bco": raw_rows(),
    "kto": raw_rows(),
    "dpo": raw_pairs(),
    "sft": TEXTS,
    "reward": documented_rows(margin=True).to_list(),
}
KINDS = {
    "torch": lambda rows: Dataset.from_list(rows).with_format("torch"),
    "numpy": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "pandas": lambda rows: Dataset.from_list(rows).with_format("pandas"),
    "arrow": lambda rows: Dataset.from_list(rows).with_format("arrow"),
    "transform": lambda rows: Dataset.from_list([{"place": i} for i in range(len(rows))]).with_transform(
        lambda batch: {name: [rows[place][name] for place in batch["place"]] for name in rows[0]}
    ),
    "list": lambda rows: rows,
    "table": pd.DataFrame,
}


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in lines(trainer)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Losses of each method's training on a plain dataset."""
    folder = tmp_path_factory.mktemp("plain")
    return {name: losses(make(folder, rows=Dataset.from_list(ROWS[name]))) for name, make in TRAINERS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINERS)
def test_rows_are_the_same_in_every_type_that_holds_them(tmp_path, expected, name, kind):
    given = KINDS[kind](ROWS[name])
    trainer = TRAINERS[name](tmp_path, rows=given, eval_dataset=given)

    assert losses(trainer) == expected[name]
    assert trainer.evaluate(KINDS[kind](ROWS[name]))["eval_loss"] == trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("name", TRAINERS)
def test_splits_of_a_dataset_are_told_apart(tmp_path, name):
    rows = Dataset.from_list(ROWS[name])

    with pytest.raises(ValueError, match=r"train_dataset: expected one dataset, found DatasetDict of train, test;"):
        TRAINERS[name](tmp_path, rows=DatasetDict({"train": rows, "test": rows}))

    trainer = TRAINERS[name](tmp_path, rows=rows, eval_dataset=DatasetDict({"near": rows, "far": rows}))
    assert {"eval_near_loss", "eval_far_loss"} <= set(trainer.evaluate())


@pytest.mark.parametrize("name", ["bco", "kto", "dpo", "reward"])
def test_a_stream_is_refused_where_rows_are_counted(tmp_path, name):
    stream = IterableDataset.from_generator(lambda: iter(ROWS[name]))

    with pytest.raises(ValueError, match=r"train_dataset: .* found IterableDataset; Dataset.from_list\(list\(stream"):
        TRAINERS[name](tmp_path, rows=stream)


@pytest.mark.parametrize("packing", [False, True])
def test_sft_learns_from_a_stream_what_it_learns_from_its_rows(tmp_path, packing):
    settings = {"packing": packing, "max_seq_length": 8, "dataset_kwargs": {"shuffle": False} if packing else None}

    def trained(rows):
        # Streams have no order but their own.
        trainer = sft_trainer(tmp_path, rows=rows, dataset_text_field="text", max_steps=2, **settings)
        trainer._get_train_sampler = lambda rows=None: torch.utils.data.SequentialSampler(trainer.train_dataset)
        return losses(trainer)

    stream = IterableDataset.from_generator(lambda: iter(TEXTS))

    assert trained(stream) == trained(Dataset.from_list(TEXTS))


def test_what_is_left_out_of_a_stream_is_said(tmp_path, caplog):
    rows = [{**row, "label": index % 2 == 0} for index, row in enumerate(raw_rows())]
    stream = IterableDataset.from_generator(lambda: iter(rows))

    found = sft_trainer(tmp_path, rows=stream).train_dataset

    assert len(list(found)) == 6
    assert caplog.text.count("train_dataset: left out of the stream: a row, undesired") == 6


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_model_is_given_by_name_with_the_tokenizer_beside_it(tmp_path, expected, name, kind):
    model = tiny_classifier() if name == "reward" else tiny_llama()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    key = "processing_class" if name in {"bco", "kto", "dpo"} else "tokenizer"

    trainer = TRAINERS[name](tmp_path, model=kind(tmp_path / "model"), rows=ROWS[name], **{key: None})

    assert losses(trainer) == expected[name]
    assert trainer.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize("name", ["bco", "kto", "dpo"])
def test_one_name_for_policy_and_reference_is_loaded_twice(tmp_path, expected, name):
    tiny_llama().save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")

    trainer = TRAINERS[name](tmp_path, model=path, ref_model=path, rows=ROWS[name])

    assert losses(trainer) == expected[name]


@pytest.mark.parametrize("name", TRAINERS)
def test_an_adapter_is_given_as_a_dict(tmp_path, name):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS" if name == "reward" else "CAUSAL_LM")
    documented = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": config.task_type}

    found = [
        losses(TRAINERS[name](tmp_path, rows=ROWS[name], peft_config=given))
        for given in (config, documented, config.to_dict())
    ]

    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match=r"peft_config: expected a dict with peft_type as .*LORA.*, found 'LoRa'"):
        TRAINERS[name](tmp_path, rows=ROWS[name], peft_config={**documented, "peft_type": "LoRa"})


SAID = {
    "evaluation_strategy": "epoch",
    "per_gpu_train_batch_size": 3,
    "per_gpu_eval_batch_size": 3,
    "warmup_ratio": 0.25,
    "no_cuda": True,
    "adafactor": True,
    "group_by_length": True,
    "include_inputs_for_metrics": True,
    "push_to_hub_model_id": "a/b",
    "push_to_hub_token": "secret",
    "torchdynamo": "eager",
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "eval_strategy": "steps",
    "report_to": "none",
    "bf16": None,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", SAID)
def test_an_argument_said_after_construction_does_what_it_does_at_construction(tmp_path, config, name):
    at_construction = config(str(tmp_path), use_cpu=True, **{name: SAID[name]})
    later = config(str(tmp_path), use_cpu=True)

    setattr(later, name, SAID[name])
    later.settle()

    assert later.to_dict() == at_construction.to_dict()


def test_every_former_argument_that_has_a_successor_is_looked_at():
    assert {name for name, former in FORMER_ARGUMENTS.items() if former.successor} <= set(SAID)


@pytest.mark.parametrize("name", sorted(name for name, former in FORMER_ARGUMENTS.items() if not former.successor))
def test_what_is_gone_is_refused_later_too(tmp_path, name):
    config = BCOConfig(str(tmp_path), use_cpu=True)
    former = FORMER_ARGUMENTS[name]

    setattr(config, name, former.default)
    with pytest.raises(ValueError, match=re.escape(former.remedy)):
        setattr(config, name, "something else")


def test_whoever_speaks_last_is_heard(tmp_path):
    config = BCOConfig(str(tmp_path), use_cpu=True, evaluation_strategy="steps", adafactor=True)

    config.eval_strategy = "epoch"
    config.adafactor = False
    config.gradient_checkpointing = True
    config.activation_checkpointing = False
    config.settle()

    assert (config.eval_strategy, config.optim) == ("epoch", "adamw_torch")
    assert (config.gradient_checkpointing, config.activation_checkpointing) == (False, False)


@pytest.mark.parametrize("name", TRAINERS)
def test_what_is_said_later_is_what_is_done(tmp_path, name):
    rows = Dataset.from_list(ROWS[name])
    kind = type(TRAINERS[name](tmp_path, rows=rows))
    make = {"sft": sft_config, "reward": reward_config}.get(name, partial(method_config, name))
    config = make(tmp_path)
    config.evaluation_strategy = "steps"
    config.gradient_checkpointing = True
    own = {"dataset_text_field": "text"} if name == "sft" else {}

    model = tiny_classifier() if name == "reward" else tiny_llama()
    own |= {"processing_class" if name in {"bco", "kto"} else "tokenizer": tiny_tokenizer()}
    trainer = kind(model, args=config, train_dataset=rows, eval_dataset=rows, **own)
    trainer.train()

    assert len(lines(trainer, "eval_loss")) == 3
    assert trainer.model.is_gradient_checkpointing


@pytest.mark.parametrize("trainer", [SFTTrainer, IterativeSFTTrainer, DPOTrainer])
def test_plain_arguments_of_transformers_let_nothing_pass_unread(tmp_path, trainer):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1)
    args.evaluation_strategy = "steps"

    with pytest.raises(ValueError, match=r"evaluation_strategy='steps': .* have no such argument; use eval_strategy"):
        trainer(tiny_llama(), args=args, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_is_made_again_of_what_it_says_of_itself(tmp_path, config):
    made = config(str(tmp_path), use_cpu=True, hub_token="secret", learning_rate=0.5)

    again = config(**made.to_dict())

    masked = {"hub_token": None, "push_to_hub_token": None}
    assert {**again.to_dict(), **masked} == {**made.to_dict(), **masked}
    assert again.hub_token is None


def test_ppo_takes_up_what_its_config_is_told_later():
    config = ppo_config()
    config.mini_batch_size = 4

    PPOTrainer(config, tiny_policy(), None, tiny_tokenizer())

    assert config.backward_batch_size == 4
    config.batch_size = 5
    with pytest.raises(ValueError, match="expected batch_size as a multiple of mini_batch_size"):
        PPOTrainer(config, tiny_policy(), None, tiny_tokenizer())


def test_ppo_says_that_it_has_no_dataset():
    with pytest.warns(UserWarning, match="no dataset: each step takes batch_size=4 queries of your own"):
        tiny_trainer()


def test_ddpo_leaves_the_precision_to_the_launcher():
    config = DDPOConfig(mixed_precision=None, accelerator_kwargs={"cpu": True})

    assert make_accelerator(config, project={}).mixed_precision == "no"


@pytest.mark.parametrize("given", [True, False, None])
@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_the_model_says_whether_it_is_an_encoder_decoder(tmp_path, caplog, make, given):
    trainer = method_trainer("bco", tmp_path, model=make(), rows=raw_rows(), is_encoder_decoder=given)

    is_one = make is tiny_t5
    assert trainer.is_encoder_decoder is is_one
    assert ("is_encoder_decoder" in caplog.text) is (given not in {None, is_one})
    trainer.train()


@pytest.mark.parametrize(("make", "given"), [(tiny_t5, None), (tiny_t5, False), (tiny_llama, True)])
def test_a_model_init_of_the_other_kind_is_refused_before_training(tmp_path, make, given):
    with pytest.raises(ValueError, match=rf"is_encoder_decoder: expected {make is tiny_t5}, for such a model"):
        method_trainer("bco", tmp_path, model_init=make, rows=raw_rows(), is_encoder_decoder=given)


@pytest.mark.parametrize("name", ["bco", "kto", "dpo"])
@pytest.mark.parametrize("precomputes", [False, True])
def test_two_adapters_of_one_model_are_policy_and_reference(tmp_path, name, precomputes):
    def with_two():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(tiny_llama(), config, adapter_name="policy")
        model.add_adapter("start", config)
        return model

    names = {"model_adapter_name": "policy", "ref_adapter_name": "start"}
    trainer = TRAINERS[name](tmp_path, model=with_two(), rows=ROWS[name], precompute_ref_log_probs=precomputes, **names)
    trainer.train()

    before = dict(with_two().named_parameters())
    moved = {key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])}
    assert moved
    assert all(".policy." in key for key in moved)


@pytest.mark.parametrize("kind", ["model", "name"])
def test_rows_that_come_after_precomputing_are_scored_by_the_reference_that_is_there(tmp_path, kind):
    other = tiny_llama(seed=3)
    other.save_pretrained(tmp_path / "other")
    reference = other if kind == "model" else str(tmp_path / "other")
    live = method_trainer("bco", tmp_path, rows=raw_rows(), ref_model=tiny_llama(seed=3))
    trainer = method_trainer("bco", tmp_path, rows=raw_rows(), ref_model=reference, precompute_ref_log_probs=True)
    assert trainer.reference is None
    live.train()
    trainer.train()

    new = raw_rows(17)[12:]

    expected = live.evaluate(Dataset.from_list(new))
    assert trainer.evaluate(new)["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert trainer.reference is None
    again = method_trainer("bco", tmp_path, rows=raw_rows(), precompute_ref_log_probs=True)
    with pytest.raises(ValueError, match="or keep the model that you gave as ref_model"):
        again.evaluate(new)


def test_the_default_collator_of_pairs_knows_the_documented_columns(tmp_path):
    trainer = reward_trainer(tmp_path, rows=documented_rows())

    batch = trainer.data_collator(documented_rows().to_list()[:3])

    assert batch["input_ids_chosen"].shape[0] == batch["attention_mask_rejected"].shape[0] == 3
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_collator_of_answers_is_one_of_transformers(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    collator = DataCollatorForCompletionOnlyLM([5], tokenizer=tokenizer)
    rows = [[3, 5, 7, 8], [4, 5, 9]]

    found = collator.torch_call([torch.tensor(rows[0]), rows[1]])

    assert isinstance(collator, DataCollatorForLanguageModeling)
    padded = {"right": [4, 5, 9, 0], "left": [0, 4, 5, 9]}[side]
    assert found["input_ids"].tolist() == [rows[0], padded]
    assert found["labels"].tolist() == [[-100, -100, 7, 8], [9 if token == 9 else -100 for token in padded]]
    assert found["attention_mask"].tolist()[1] == [int(token > 0) for token in padded]
    assert {name: tensor.tolist() for name, tensor in collator([{"input_ids": row} for row in rows]).items()} == {
        name: tensor.tolist() for name, tensor in found.items()
    }
    with pytest.raises(ValueError, match="expected return_tensors=\"pt\", found 'np'"):
        collator(rows, return_tensors="np")


def test_sft_learns_the_same_of_rows_padded_on_the_left(tmp_path):
    found = {}
    for side in ("right", "left"):
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = side
        collator = DataCollatorForCompletionOnlyLM([tokenizer(" ".join(["is"]))["input_ids"][-1]], tokenizer=tokenizer)
        texts = [{"text": f"what is {' '.join(row['text'].split()[:3])}"} for row in TEXTS]
        found[side] = losses(
            sft_trainer(tmp_path, rows=texts, dataset_text_field="text", tokenizer=tokenizer, data_collator=collator)
        )

    assert found["left"] == pytest.approx(found["right"], rel=1e-4)


def test_packed_rows_are_as_long_as_their_data_as_documented():
    assert len(ConstantLengthDataset(tiny_tokenizer(), Dataset.from_list(TEXTS), "text")) == len(TEXTS)


def test_a_state_dict_of_trl_is_read_and_one_of_ours_too():
    torch.manual_seed(5)
    source = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_llama(seed=7))
    plain = {
        **source.pretrained_model.state_dict(),
        **{f"v_head.{name}": weight for name, weight in source.v_head.state_dict().items()},
    }
    assert "model.embed_tokens.weight" in plain

    for weights in (plain, source.state_dict()):
        found = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_llama())
        found.load_state_dict(weights)

        assert all(torch.equal(weight, found.state_dict()[name]) for name, weight in source.state_dict().items())


def test_encoded_rows_pass_in_any_format(tmp_path):
    plain = losses(method_trainer("bco", tmp_path, rows=encoded_rows()))

    assert losses(method_trainer("bco", tmp_path, rows=encoded_rows().with_format("torch"))) == plain
