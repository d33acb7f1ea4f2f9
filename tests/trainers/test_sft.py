"""Supervised fine-tuning on tiny models: what is learned, how rows are packed, what is refused and when."""

import inspect
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
    TrainingArguments,
)

from stages.losses.sft import IGNORED
from stages.rows.packing import ConstantLengthDataset
from stages.trainers import SFTTrainer
from stages.trainers.sft.completion_only import DataCollatorForCompletionOnlyLM
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import WORDS, SecondOfTwo, encoded_rows, tiny_llama, tiny_mixtral, tiny_t5, tiny_tokenizer
from tests.trainers.tiny_sft import TEXTS, sft_config, sft_trainer

EOS = 2


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@needs_shared
def test_the_constructor_takes_the_documented_arguments():
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())["SFTTrainer"]

    found = list(inspect.signature(SFTTrainer).parameters.values())

    assert [[argument.name, str(argument.default)] for argument in found][: len(ledger)] == ledger


# ---- what is learned ----


def test_learns_texts(tmp_path):
    trainer = sft_trainer(tmp_path, max_steps=8)

    trainer.train()

    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5


def test_the_loss_is_a_mean_over_tokens_of_the_whole_step_however_it_is_cut(tmp_path):
    rows = encoded_rows(8).remove_columns("label")
    model = tiny_llama()
    logps = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, row["prompt_length"] - 1 : -1]
        logps.append(-cross_entropy(logits, torch.tensor(row["input_ids"][row["prompt_length"] :]), reduction="none"))

    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        trainer = sft_trainer(tmp_path, rows=rows, **arguments)
        trainer.train()
        found.append((losses(trainer)[0], trainer.model.lm_head.weight))

    assert found[0][0] == pytest.approx(-torch.cat(logps).mean().item(), rel=1e-5)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pads_with_eos", [False, True])
def test_s1_an_eos_stands_behind_each_text_and_is_learned_whatever_the_tokenizer_pads_with(tmp_path, pads_with_eos):
    tokenizer = tiny_tokenizer()
    if pads_with_eos:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = sft_trainer(
        tmp_path,
        rows=[{"text": "what is"}, {"text": "what is the sky"}] * 4,
        dataset_text_field="text",
        tokenizer=tokenizer,
        max_steps=60,
        learning_rate=2e-2,
    )
    batch = next(iter(trainer.get_train_dataloader()))

    trainer.train()

    assert (batch["labels"] == EOS).sum() == 4
    with torch.no_grad():
        answer = trainer.model(input_ids=torch.tensor([tokenizer("what is the sky")["input_ids"]])).logits[0, -1]
    assert answer.argmax() == EOS


@pytest.mark.parametrize(
    ("completion_only", "learned"), [(None, 4), (True, 2), (False, 4)], ids=["by default", "asked for", "not wanted"]
)
def test_completions_alone_are_learned_of_raw_rows_if_asked_for(tmp_path, completion_only, learned):
    # <s> <user> what <assistant> fine </s>; nothing foresees the first token
    trainer = sft_trainer(
        tmp_path, rows=[{"prompt": "what", "completion": "fine"}] * 4, completion_only_loss=completion_only
    )

    batch = next(iter(trainer.get_train_dataloader()))

    assert (batch["labels"][0, 1:] != IGNORED).sum() == learned + (learned == 4)


def test_rows_that_a_stage_encoded_are_learned_behind_their_prompt_by_their_weight(tmp_path):
    rows = encoded_rows(8).remove_columns(["label", "weight", "reference_logps", "row_id"])
    weighted = rows.add_column("weight", [0.0, 2.0] * 4)
    gradients = {}
    for name, given in (("all", rows), ("weighted", weighted), ("odd", weighted.select(range(1, 8, 2)))):
        trainer = sft_trainer(tmp_path, rows=given, per_device_train_batch_size=8, max_steps=1)
        trainer.train()
        gradients[name] = trainer.state.log_history[0]["loss"]

    counts = [len(row["input_ids"]) - row["prompt_length"] for row in rows]
    share = sum(counts[1::2]) / sum(counts)
    assert gradients["weighted"] == pytest.approx(gradients["odd"] * share, rel=1e-5)
    assert gradients["weighted"] != pytest.approx(gradients["all"], rel=1e-3)


def test_answers_of_a_row_weigh_what_the_row_says(tmp_path):
    rows = encoded_rows(4).remove_columns(["label", "weight", "reference_logps", "row_id"]).to_list()
    # One answer of two tokens and one of one; the loss is linear in what they weigh.
    rows = [{**row, "input_ids": [1, 5, 7, 8, 9], "prompt_length": 2, "spans": [0, 2, 2, 3]} for row in rows]
    found = {}
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 2.0]):
        weighed = [{**row, "span_weights": weights} for row in rows]
        trainer = sft_trainer(tmp_path, rows=weighed, per_device_train_batch_size=4, max_steps=1)
        trainer.train()
        measured = sft_trainer(tmp_path, rows=weighed, compute_metrics=lambda _: {}).evaluate(Dataset.from_list(rows))
        found[tuple(weights)] = trainer.state.log_history[0]["loss"]
        assert measured["eval_loss"] > 0

    first, second = found[1.0, 0.0], found[0.0, 1.0]
    assert found[0.5, 2.0] == pytest.approx(0.5 * first + 2 * second, rel=1e-5)


def test_an_evaluation_weighs_answers_with_and_without_metrics(tmp_path):
    row = {"input_ids": [1, 5, 7, 8, 9], "prompt_length": 2, "spans": [0, 2, 2, 3]}
    rows = Dataset.from_list([{**row, "span_weights": [0.5, 2.0]}, {**row, "span_weights": None}])
    plain, measured = (sft_trainer(tmp_path, rows=rows, compute_metrics=metrics) for metrics in (None, lambda _: {}))

    found = measured.evaluate(rows)["eval_loss"]

    assert found == pytest.approx(plain.evaluate(rows)["eval_loss"], rel=1e-5)
    assert found != pytest.approx(plain.evaluate(rows.remove_columns("span_weights"))["eval_loss"], rel=1e-3)


def test_messages_say_what_their_answers_weigh(tmp_path):
    completion = [
        {"role": "assistant", "content": "fine", "weight": 0.5},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "good sea"},
    ]
    rows = [{"prompt": [{"role": "user", "content": "what"}], "completion": completion}]

    trainer = sft_trainer(tmp_path, rows=rows, completion_only_loss=True)
    batch = trainer.data_collator([trainer.train_dataset[0]])

    learned = batch["labels"][0] != IGNORED
    # fine | good sea </s>
    assert batch["token_weights"][0][learned].tolist() == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "settings", "match"),
    [
        ({}, {"packing": True, "max_seq_length": 8}, "without weights and position_ids to pack, found span_weights"),
        ({}, {"completion_only_loss": False}, "completion_only_loss=None or True for rows with span_weights"),
        ({}, {"label_smoothing_factor": 0.1}, "expected no span_weights with a data_collator of your own or label"),
    ],
)
def test_weights_of_answers_are_refused_where_nothing_reads_them(tmp_path, columns, settings, match):
    row = {"input_ids": [1, 5, 7, 8, 9], "prompt_length": 2, "spans": [0, 2, 2, 3], "span_weights": [0.5, 2.0]}

    with pytest.raises(ValueError, match=match):
        sft_trainer(tmp_path, rows=[{**row, **columns}] * 4, **settings)


def test_a_message_that_isnt_to_be_learned_is_refused_where_all_of_a_row_is(tmp_path):
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "fine", "weight": 0}]
    later = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "good"}]

    with pytest.raises(ValueError, match="row 0: expected completion_only_loss=True where messages have a weight"):
        sft_trainer(tmp_path, rows=[{"messages": [*turns, *later]}] * 4)


@pytest.mark.parametrize("completion_only", [None, True])
def test_a_stream_of_conversations_is_learned_as_a_dataset_is(tmp_path, completion_only):
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "fine"}]
    rows = Dataset.from_list([{"messages": turns}] * 4)
    trainers = [
        sft_trainer(tmp_path, rows=given, completion_only_loss=completion_only)
        for given in (rows, rows.to_iterable_dataset())
    ]

    labels = [next(iter(trainer.get_train_dataloader()))["labels"].tolist() for trainer in trainers]

    assert labels[0] == labels[1]


def test_the_answers_of_a_conversation_are_learned_with_the_completion_only_collator(tmp_path):
    rows = [{"text": f"<user> what is <assistant> {word} </s>"} for word in WORDS[:8]]
    collator = DataCollatorForCompletionOnlyLM("<assistant>", tokenizer=tiny_tokenizer())

    trainer = sft_trainer(tmp_path, rows=rows, dataset_text_field="text", data_collator=collator)
    trainer.train()

    assert (next(iter(trainer.get_train_dataloader()))["labels"] != IGNORED).sum(1).tolist() == [2] * 4
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize(("number", "own"), [(7, 3), (4, 0)])
def test_rows_that_only_fill_the_last_batch_of_a_process_are_not_learned(tmp_path, number, own):
    trainer = sft_trainer(tmp_path, rows=TEXTS[:number], dataset_text_field="text")
    batch = trainer.data_collator(trainer.train_dataset.select([0, 1, 2, 3]).to_list())
    counts = (batch["labels"][:, 1:] != IGNORED).sum(-1)
    trainer.accelerator = SecondOfTwo(trainer.accelerator)

    (ready,), found = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.compute_loss(trainer.model, ready, num_items_in_batch=found).backward()

    assert (ready["labels"][:, 1:] != IGNORED).sum(-1).tolist() == [*counts[:own].tolist(), *[0] * (4 - own)]
    assert found == counts[:own].sum()
    assert (trainer.model.lm_head.weight.grad.abs().max() > 0) == (own > 0)


def test_a_collator_of_transformers_gives_the_same_loss(tmp_path):
    trainers = [
        sft_trainer(tmp_path, data_collator=collator, max_steps=2)
        for collator in (None, DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False))
    ]
    for trainer in trainers:
        trainer.train()

    assert losses(trainers[1]) == pytest.approx(losses(trainers[0]), rel=1e-5)


def test_smoothed_labels_are_left_to_the_loop_of_transformers(tmp_path):
    plain, smooth = (sft_trainer(tmp_path, label_smoothing_factor=factor, max_steps=1) for factor in (0.0, 0.5))
    plain.train()
    smooth.train()

    norms = [trainer.state.log_history[0]["grad_norm"] for trainer in (plain, smooth)]
    assert norms[1] == pytest.approx(norms[0] / 2, rel=0.01)


def test_a_mixture_of_experts_adds_its_balance_loss(tmp_path):
    found = []
    for coefficient in (0.0, 10.0):
        model = tiny_mixtral(output_router_logits=True, router_aux_loss_coef=coefficient or 1e-9)
        trainer = sft_trainer(tmp_path, model=model, max_steps=1)
        trainer.train()
        found.append(losses(trainer)[0])

    assert found[1] > found[0] + 1


def test_noise_on_the_embeddings_is_there_while_training_and_gone_afterwards(tmp_path):
    plain, noisy = sft_trainer(tmp_path), sft_trainer(tmp_path, neftune_noise_alpha=20.0)
    rows = Dataset.from_list(TEXTS)
    assert noisy.evaluate(rows)["eval_loss"] == plain.evaluate(rows)["eval_loss"]

    plain.train()
    noisy.train()

    assert losses(noisy)[0] != losses(plain)[0]
    assert not noisy.model.get_input_embeddings()._forward_hooks


def test_an_adapter_is_trained_and_nothing_else(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = sft_trainer(tmp_path, peft_config=adapter)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}

    trainer.train()

    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_a_model_and_its_tokenizer_are_loaded_by_name(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    trainer = SFTTrainer(
        str(tmp_path / "model"),
        sft_config(tmp_path),
        train_dataset=Dataset.from_list(TEXTS),
        dataset_text_field="text",
        model_init_kwargs={"dtype": "bfloat16"},
    )

    assert trainer.model.dtype is torch.bfloat16
    assert trainer.processing_class.eos_token_id == EOS
    trainer.train()


def test_a_model_is_made_anew_for_each_training(tmp_path):
    trainer = sft_trainer(tmp_path, model_init=tiny_llama)

    for _ in range(2):
        trainer.train()

    lines = losses(trainer)
    assert len(lines) == 3
    assert lines[0] == pytest.approx(3.5, abs=0.2)


# ---- packing ----


def test_documents_kept_apart_are_learned_as_they_are_by_themselves(tmp_path):
    found = []
    for settings in (
        {},
        {"packing": True, "max_seq_length": 16, "dataset_kwargs": {"keep_documents_apart": True}},
    ):
        trainer = sft_trainer(tmp_path, per_device_train_batch_size=32, **settings)
        trainer.train()
        found.append((losses(trainer), [weight.detach() for weight in trainer.model.parameters()]))

    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for packed, alone in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)


def test_rows_laid_end_to_end_for_flash_attention_give_the_same_loss(tmp_path):
    settings = {"packing": True, "max_seq_length": 16, "dataset_kwargs": {"keep_documents_apart": True}}
    plain, flat = (sft_trainer(tmp_path, **settings) for _ in range(2))
    flat.data_collator.flattens = True

    plain.train()
    flat.train()

    assert losses(flat) == pytest.approx(losses(plain), rel=1e-5)


def test_prompts_with_completions_are_packed_with_their_labels(tmp_path):
    rows = [{"prompt": "what is", "completion": word} for word in WORDS[:9]]
    found = []
    for packing in (False, True):
        trainer = sft_trainer(
            tmp_path,
            rows=rows,
            completion_only_loss=True,
            packing=packing,
            max_seq_length=16,
            dataset_kwargs={"keep_documents_apart": True} if packing else None,
            per_device_train_batch_size=16,
        )
        trainer.train()
        found.append(losses(trainer))

    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_packed_texts_hold_every_token_once(tmp_path):
    trainer = sft_trainer(tmp_path, packing=True, max_seq_length=8, num_of_sequences=1, chars_per_token=1.0)

    found = [token for row in trainer.train_dataset["input_ids"] for token in row]

    expected = [token for row in TEXTS for token in [*tiny_tokenizer()(row["text"])["input_ids"], EOS]]
    assert sorted(found) == sorted(expected)
    trainer.train()


def test_a_constant_length_dataset_is_read_once_if_it_ends_and_streamed_if_not(tmp_path):
    def packer(**settings):
        return ConstantLengthDataset(tiny_tokenizer(), TEXTS, "text", seq_length=8, **settings)

    finite = sft_trainer(tmp_path, rows=packer(), max_steps=-1, num_train_epochs=1)
    infinite = sft_trainer(tmp_path, rows=packer(infinite=True), max_steps=9)
    finite.train()
    infinite.train()

    assert isinstance(finite.train_dataset, Dataset)
    assert finite.state.epoch == 1.0
    assert infinite.state.global_step == 9


def test_a_model_that_lets_documents_see_each_other_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.trainers.sft.trainer.keeps_documents_apart", lambda _: False)

    with pytest.raises(ValueError, match="LlamaForCausalLM lets a document see the one before it"):
        sft_trainer(tmp_path, packing=True, dataset_kwargs={"keep_documents_apart": True})


def test_whether_documents_stay_apart_is_tried_in_the_types_of_training(tmp_path):
    model, types = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda _, __, logits: types.append(logits.dtype))

    sft_trainer(tmp_path, model=model, packing=True, bf16=True, dataset_kwargs={"keep_documents_apart": True})

    assert set(types) == {torch.bfloat16}


# ---- evaluation ----


def test_the_loss_of_an_evaluation_is_a_mean_over_all_its_tokens(tmp_path):
    rows = Dataset.from_list(TEXTS)
    trainer = sft_trainer(tmp_path, eval_dataset={"a": rows, "b": rows.select([0, 5])}, per_device_eval_batch_size=5)

    found = trainer.evaluate()

    logits = [
        (ids, trainer.model(input_ids=torch.tensor([ids])).logits[0]) for ids in trainer.train_dataset["input_ids"]
    ]
    each = torch.cat([cross_entropy(row[:-1], torch.tensor(ids[1:]), reduction="none") for ids, row in logits])
    assert found["eval_a_loss"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert found["eval_b_loss"] == pytest.approx(trainer.evaluate(rows.select([0, 5]))["eval_loss"], rel=1e-6)


def test_metrics_are_computed_from_logits_and_labels(tmp_path):
    seen = []
    trainer = sft_trainer(
        tmp_path,
        eval_dataset=Dataset.from_list(TEXTS[:4]),
        compute_metrics=lambda p: seen.append((p.predictions.shape, p.label_ids.shape)) or {"mine": 1.0},
    )
    alone = sft_trainer(tmp_path, eval_dataset=Dataset.from_list(TEXTS[:4]))

    found = trainer.evaluate()

    assert found["eval_mine"] == 1.0
    assert seen[0][0] == (*seen[0][1], 32)
    assert found["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    assert trainer.predict(Dataset.from_list(TEXTS[:2])).predictions.shape[0] == 2


@pytest.mark.parametrize("settings", [{}, {"label_smoothing_factor": 0.1}], ids=["metrics", "smoothed labels"])
def test_a_batch_without_a_learned_token_changes_no_loss_of_an_evaluation(tmp_path, settings):
    rows = encoded_rows(4).remove_columns(["label", "weight", "reference_logps", "row_id"]).to_list()
    nothing_to_learn = {**rows[0], "prompt_length": len(rows[0]["input_ids"])}
    trainer = sft_trainer(
        tmp_path, rows=rows, per_device_eval_batch_size=1, compute_metrics=lambda _: {}, **settings,
    )  # fmt: skip
    expected = trainer.evaluate(Dataset.from_list(rows))["eval_loss"]

    found = trainer.evaluate(Dataset.from_list([*rows, nothing_to_learn]))["eval_loss"]

    assert found == pytest.approx(expected, rel=1e-6)


def test_rows_weigh_the_same_in_an_evaluation_with_metrics(tmp_path):
    rows = encoded_rows(5).remove_columns(["label", "weight", "reference_logps", "row_id"])
    rows = rows.add_column("weight", [0.0, 2.0, 1.0, 0.5, 3.0])
    plain, measured = (sft_trainer(tmp_path, rows=rows, compute_metrics=metrics) for metrics in (None, lambda _: {}))

    found = measured.evaluate(rows)["eval_loss"]

    assert found == pytest.approx(plain.evaluate(rows)["eval_loss"], rel=1e-5)


# ---- going on ----


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("step", [1, 4])
def test_goes_on_bit_for_bit_from_any_step(tmp_path, step):
    run = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 2,
        "neftune_noise_alpha": 5.0,
    }
    whole = sft_trainer(tmp_path / "whole", model=tiny_llama(dropout=0.2), **run)
    whole.train()
    sft_trainer(tmp_path / "cut", model=tiny_llama(dropout=0.2), callbacks=[StopAfter(step)], **run).train()
    torch.rand(7)  # a new process stands elsewhere in its random stream

    resumed = sft_trainer(tmp_path / "cut", model=tiny_llama(dropout=0.2), **run)
    resumed.train(resume_from_checkpoint=True)

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    points = [[line for line in trainer.state.log_history if "loss" in line] for trainer in (resumed, whole)]
    assert points[0] == points[1]
    assert "Supervised fine-tuning" in (tmp_path / "whole" / "checkpoint-1" / "README.md").read_text()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"args": object()}, "args as SFTConfig or TrainingArguments, found object"),
        ({"dataset_text_field": "missing"}, "texts in a column 'missing', found columns text"),
        ({"dataset_text_field": None}, "name the column of the text as dataset_text_field"),
        ({"formatting_func": str, "dataset_text_field": "text"}, "one of dataset_text_field and formatting_func"),
        ({"dataset_kwargs": {"add_special_token": True}}, "did you mean add_special_tokens"),
        ({"dataset_kwargs": {"shuffle": True}}, "known without packing, found 'shuffle'"),
        ({"max_seq_length": 0}, "seq_length and num_of_sequences from 1"),
        ({"num_of_sequences": 0}, "seq_length and num_of_sequences from 1"),
        ({"neftune_noise_alpha": -1.0}, "neftune_noise_alpha above 0"),
        ({"completion_only_loss": True}, "rows that say where their prompt ends, found texts"),
        (
            {"packing": True, "data_collator": DataCollatorForCompletionOnlyLM([5], tokenizer=tiny_tokenizer())},
            "packing=False with DataCollatorForCompletionOnlyLM",
        ),
        ({"eval_dataset": [1, 2]}, "a datasets.Dataset or a ConstantLengthDataset, found list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        sft_trainer(tmp_path, model=str(tmp_path / "no such model"), **arguments)


def test_other_contradictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of model and model_init"):
        SFTTrainer(args=sft_config(tmp_path))
    with pytest.raises(ValueError, match="model_init_kwargs only with model as a name"):
        sft_trainer(tmp_path, model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="a causal language model, found an encoder-decoder"):
        sft_trainer(tmp_path, model=tiny_t5())
    with pytest.raises(ValueError, match="neftune_noise_alpha above 0 and the same in args, found 3.0 and 5.0"):
        sft_trainer(tmp_path, neftune_noise_alpha=3.0, args=sft_config(tmp_path, neftune_noise_alpha=5.0))
    with pytest.raises(ValueError, match="up to max_seq_length=3 tokens, found one of 9"):
        sft_trainer(tmp_path, rows=encoded_rows(), max_seq_length=3)
    with pytest.raises(ValueError, match="rows without weights and position_ids to pack"):
        rows = encoded_rows().remove_columns("weight").add_column("weight", [0.5] * 12)
        sft_trainer(tmp_path, rows=rows, packing=True)
    with pytest.raises(ValueError, match="one that belongs to the model, found none"):
        SFTTrainer(
            tiny_llama(), sft_config(tmp_path), train_dataset=Dataset.from_list(TEXTS), dataset_text_field="text"
        )


def test_infinite_is_deprecated_and_without_effect(tmp_path):
    with pytest.warns(FutureWarning, match="infinite is deprecated and has no effect"):
        trainer = sft_trainer(tmp_path, infinite=True, packing=True, max_seq_length=8)

    assert len(trainer.train_dataset) > 0


def test_plain_training_arguments_do_as_well(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")

    trainer = sft_trainer(tmp_path, args=args)
    trainer.train()

    assert trainer.state.global_step == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("arguments", [{}, {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}])
def test_a_model_not_called_for_causal_lm_has_the_same_mean(tmp_path, smoothing, arguments):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )
    trainer = sft_trainer(
        tmp_path, model=model, rows=Dataset.from_list(TEXTS), dataset_text_field="text", eval_dataset=TEXTS,
        learning_rate=0.0, max_steps=1, per_device_train_batch_size=12, label_smoothing_factor=smoothing,
        disable_dropout=True, **arguments,
    )  # fmt: skip

    trainer.train()

    assert losses(trainer)[0] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
