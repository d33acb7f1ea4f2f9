"""Reward trainer: what it learns from pairs, measures, cuts, resumes and refuses."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForSequenceClassification, TrainerCallback, TrainingArguments

from stages.trainers import RewardConfig, RewardDataCollatorWithPadding, RewardTrainer
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import SecondOfTwo, tiny_tokenizer
from tests.trainers.tiny_reward import documented_rows, reward_config, reward_trainer, staged_rows, tiny_classifier

# peft 0.21 asks transformers 5 under a name that has changed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ADAPTER = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"}


def scores(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


# ---- loss and metrics ----


def test_pairs_that_were_read_at_construction_are_not_read_again(tmp_path):
    trainer = reward_trainer(tmp_path, rows=documented_rows(7), eval_dataset={"few": documented_rows(3)})

    for rows in (trainer.train_dataset, trainer.eval_dataset["few"]):
        assert trainer.get_eval_dataloader(rows).dataset is rows
    assert len(trainer.get_eval_dataloader(documented_rows(4)).dataset) == 4


def test_pairs_that_only_fill_the_last_batch_of_a_process_are_not_learned(tmp_path):
    trainer = reward_trainer(tmp_path, rows=documented_rows(7))
    batch = trainer.data_collator(trainer.train_dataset.select([4, 5, 6, 0]).to_list())
    trainer.accelerator = SecondOfTwo(trainer.accelerator)

    (ready,), _ = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    loss, outputs = trainer.compute_loss(trainer.model, ready, return_outputs=True)

    # the fourth is the first pair again; the mean of both processes is over seven pairs
    torch.testing.assert_close(loss, outputs["losses"][:3].sum() * 2 / 7)


def test_r1_the_margin_of_a_pair_counts_for_that_pair_alone(tmp_path):
    model, rows = tiny_classifier(), documented_rows(4, margin=True)
    trainer = reward_trainer(tmp_path, model=model, rows=rows)

    loss = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))

    leads = [scores(model, row["input_ids_chosen"]) - scores(model, row["input_ids_rejected"]) for row in rows]
    expected = [math.log1p(math.exp(-(lead - margin))) for lead, margin in zip(leads, rows["margin"], strict=True)]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_r2_rows_longer_than_max_length_are_cut_to_it_and_counted(tmp_path, caplog):
    rows = documented_rows(8)

    trainer = reward_trainer(tmp_path, rows=rows, max_length=5)

    batch = trainer.data_collator(list(trainer.train_dataset))
    assert batch["chosen_input_ids"].shape == (8, 5)
    longer = sum(max(len(row["input_ids_chosen"]), len(row["input_ids_rejected"])) > 5 for row in rows)
    assert trainer.num_truncated == {"train_dataset": longer}
    assert f"train_dataset: of 8 pairs: cut {longer} (max_length 5)" in caplog.text
    assert trainer.train_dataset[4]["chosen_input_ids"] == rows[4]["input_ids_chosen"][:5]


def test_r2_pairs_longer_than_max_length_can_be_left_out_instead(tmp_path):
    rows = documented_rows(8)

    trainer = reward_trainer(tmp_path, rows=rows, max_length=5, too_long="drop")

    fitting = [row for row in rows if max(len(row["input_ids_chosen"]), len(row["input_ids_rejected"])) <= 5]
    assert len(trainer.train_dataset) == len(fitting)
    assert trainer.left_out["train_dataset"].counts == {"too_long": 8 - len(fitting)}


def test_r2_the_documented_collator_truncates():
    collate = RewardDataCollatorWithPadding(tiny_tokenizer(), max_length=5)

    batch = collate(list(documented_rows(8, margin=True)))

    assert batch["input_ids_chosen"].shape == (8, 5)
    assert batch["attention_mask_rejected"].sum(1).tolist() == [3, 4, 5, 5, 3, 4, 5, 5]
    assert batch["margin"].tolist() == [0.5 * index for index in range(8)]
    assert batch["return_loss"] is True
    padded = RewardDataCollatorWithPadding(tiny_tokenizer(), pad_to_multiple_of=16)(list(documented_rows(2)))
    assert padded["input_ids_chosen"].shape == (2, 16)
    whole = RewardDataCollatorWithPadding(tiny_tokenizer(), padding="max_length", max_length=20)(
        list(documented_rows(2))
    )
    assert whole["input_ids_rejected"].shape == (2, 20)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_r3_both_completions_go_through_the_model_in_one_pass(tmp_path, use_reentrant):
    model = tiny_classifier()
    shapes = []
    model.register_forward_hook(lambda _, __, output: shapes.append(output.logits.shape))
    trainer = reward_trainer(
        tmp_path,
        model=model,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
        max_steps=2,
    )

    trainer.train()

    assert shapes == [(8, 1), (8, 1)]


def test_one_pass_gives_what_each_completion_gets_alone(tmp_path):
    model = tiny_classifier()
    trainer = reward_trainer(tmp_path, model=model)

    _, outputs = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)), return_outputs=True)

    for side in ("chosen", "rejected"):
        alone = [scores(model, ids) for ids in trainer.train_dataset[f"{side}_input_ids"]]
        np.testing.assert_allclose(outputs[f"rewards_{side}"].detach(), alone, rtol=1e-4, atol=1e-6)


def test_learns_to_prefer_the_chosen_completions(tmp_path):
    trainer = reward_trainer(tmp_path, max_steps=20, eval_dataset=documented_rows(10, seed=1))

    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert after["eval_loss"] < before["eval_loss"] / 2
    assert after["eval_accuracy"] == 1.0
    assert after["eval_rewards/margins"] > 1


def test_a_tie_is_half_right(tmp_path):
    model = tiny_classifier()
    torch.nn.init.zeros_(model.score.weight)

    metrics = reward_trainer(tmp_path, model=model, eval_dataset=staged_rows(5)).evaluate()

    assert metrics["eval_accuracy"] == 0.5
    assert metrics["eval_loss"] == pytest.approx(math.log(2))


def test_the_mean_loss_weighs_every_pair_alike_whatever_the_last_batch_holds(tmp_path):
    rows = staged_rows(7)

    ragged = reward_trainer(tmp_path, eval_dataset=rows).evaluate()
    at_once = reward_trainer(tmp_path, eval_dataset=rows, per_device_eval_batch_size=7).evaluate()

    for name in ("eval_loss", "eval_accuracy", "eval_rewards/chosen", "eval_rewards/margins"):
        assert ragged[name] == pytest.approx(at_once[name], rel=1e-5)


def test_a_pair_counts_as_much_as_its_weight_says(tmp_path):
    rows = staged_rows(2)
    weighted = rows.remove_columns("weight").add_column("weight", [3.0, 0.0])

    losses = []
    for given in (rows.select([0]), weighted):
        trainer = reward_trainer(tmp_path, rows=given)
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item())

    assert losses[1] == pytest.approx(losses[0] * 3 / 2, rel=1e-5)


def test_compute_metrics_gets_the_probabilities_of_chosen_and_rejected(tmp_path):
    seen = {}

    def keep(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"mine": 1.0}

    metrics = reward_trainer(tmp_path, eval_dataset=staged_rows(5), compute_metrics=keep).evaluate()

    assert seen["predictions"].shape == (5, 2)
    np.testing.assert_allclose(seen["predictions"].sum(1), np.ones(5), rtol=1e-6)
    assert seen["labels"].tolist() == [0] * 5
    assert metrics["eval_accuracy"] == np.mean(seen["predictions"].argmax(1) == 0)
    assert metrics["eval_mine"] == 1.0


# ---- rows ----

_CHAT = ["<s>", "<user>", "what", "is", "<assistant>", "bad", "</s>"]


def test_texts_conversations_documented_ids_and_staged_ids_give_the_same_rows(tmp_path):
    texts = [{"prompt": "what is", "chosen": " blue sky", "rejected": " bad", "margin": 1}]
    turns = [{"prompt": "what is", "chosen": [], "rejected": [], "margin": 1}]
    turns[0]["prompt"] = [{"role": "user", "content": "what is"}]
    for side in ("chosen", "rejected"):
        turns[0][side] = [{"role": "assistant", "content": texts[0][side].strip()}]

    plain = reward_trainer(tmp_path, rows=Dataset.from_list(texts)).train_dataset[0]
    chat = reward_trainer(tmp_path, rows=Dataset.from_list(turns)).train_dataset[0]

    tokenizer = tiny_tokenizer()
    assert plain["chosen_input_ids"] == tokenizer("<s> what is blue sky </s>")["input_ids"]
    assert tokenizer.decode(chat["rejected_input_ids"]).split() == _CHAT
    assert plain["margin"] == chat["margin"] == 1.0
    columns = {f"input_ids_{side}": [plain[f"{side}_input_ids"]] for side in ("chosen", "rejected")}
    ids = reward_trainer(tmp_path, rows=Dataset.from_dict(columns)).train_dataset[0]
    assert {name: ids[name] for name in columns if name in ids} == {}
    assert [ids[f"{side}_input_ids"] for side in ("chosen", "rejected")] == [
        plain[f"{side}_input_ids"] for side in ("chosen", "rejected")
    ]


def test_what_a_mask_hides_is_no_part_of_a_row(tmp_path):
    padded = {"input_ids_chosen": [[0, 0, 5, 6]], "attention_mask_chosen": [[0, 0, 1, 1]]}
    padded |= {"input_ids_rejected": [[7, 8, 0]], "attention_mask_rejected": [[1, 1, 0]]}

    row = reward_trainer(tmp_path, rows=Dataset.from_dict(padded)).train_dataset[0]

    assert (row["chosen_input_ids"], row["rejected_input_ids"]) == ([5, 6], [7, 8])


def test_margins_stay_with_their_pairs_when_others_are_left_out(tmp_path):
    rows = [
        {"prompt": "what is", "chosen": " the", "rejected": " the", "margin": 9.0},
        {"prompt": "what is", "chosen": " blue", "rejected": " bad", "margin": 2.0},
    ]

    trainer = reward_trainer(tmp_path, rows=Dataset.from_list(rows))

    assert trainer.train_dataset["margin"][:] == [2.0]
    assert trainer.left_out["train_dataset"].counts == {"identical_pair": 1}


def test_pairs_that_are_alike_once_cut_are_left_out_and_counted(tmp_path):
    rows = {f"{side}_input_ids": [[1, 5, 6, last], [1, last]] for side, last in (("chosen", 7), ("rejected", 8))}
    rows |= {f"{side}_prompt_length": [2, 1] for side in ("chosen", "rejected")}

    trainer = reward_trainer(tmp_path, rows=Dataset.from_dict(rows), max_length=3)

    assert trainer.left_out["train_dataset"].counts == {"identical_pair": 1}
    with pytest.raises(ValueError, match="found none left .2 no_room_for_completion.; raise max_length"):
        reward_trainer(tmp_path, rows=Dataset.from_dict(rows), max_length=1)


def test_a_collator_of_ones_own_gets_the_rows_as_they_are(tmp_path):
    seen = []
    collate = RewardDataCollatorWithPadding(tiny_tokenizer())
    trainer = reward_trainer(
        tmp_path, rows=documented_rows(8, margin=True), data_collator=lambda rows: seen.extend(rows) or collate(rows)
    )

    trainer.train()

    assert set(seen[0]) == set(documented_rows(1, margin=True).column_names)
    assert trainer.state.log_history[0]["loss"] > 0


def test_several_evaluation_sets_are_named_and_another_can_be_given_later(tmp_path):
    trainer = reward_trainer(tmp_path, eval_dataset={"a": documented_rows(3), "b": staged_rows(4)})

    metrics = trainer.evaluate()
    later = trainer.evaluate(documented_rows(3))

    assert {"eval_a_accuracy", "eval_b_accuracy"} <= set(metrics)
    assert later["eval_accuracy"] == metrics["eval_a_accuracy"]


def test_model_and_collator_pad_with_one_token(tmp_path):
    model = tiny_classifier()
    model.config.pad_token_id = 31
    assert reward_trainer(tmp_path, model=model).data_collator.pad_id == 31

    model.config.pad_token_id = None
    reward_trainer(tmp_path, model=model)
    assert model.config.pad_token_id == tiny_tokenizer().pad_token_id


# ---- checkpoints, adapters ----


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


RUN = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 2,
}


@PEFT_WARNS
@pytest.mark.parametrize("adapter", [None, {**ADAPTER, "lora_dropout": 0.2}], ids=["whole", "adapter"])
def test_goes_on_bit_for_bit(tmp_path, adapter):
    def made(folder, **arguments):
        peft_config = None if adapter is None else LoraConfig(**adapter)
        return reward_trainer(folder, model=tiny_classifier(dropout=0.2), peft_config=peft_config, **RUN, **arguments)

    whole = made(tmp_path / "whole")
    whole.train()
    made(tmp_path / "cut", callbacks=[StopAfter(3)]).train()
    torch.rand(7)  # a new process stands elsewhere in its random stream

    resumed = made(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)

    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    points = [[line for line in trainer.state.log_history if "loss" in line] for trainer in (resumed, whole)]
    assert points[0] == points[1]


@PEFT_WARNS
def test_an_adapter_trains_itself_and_the_head(tmp_path):
    trainer = reward_trainer(tmp_path, peft_config=LoraConfig(**ADAPTER))
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    trainer.train()

    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name or "score.modules_to_save" in name}


def test_the_model_and_its_page_are_saved(tmp_path):
    trainer = reward_trainer(tmp_path)
    trainer.train()

    trainer.save_model(str(tmp_path / "saved"))

    again = LlamaForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.score.weight, trainer.model.score.weight)
    page = (tmp_path / "saved" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in page
    assert "Bradley-Terry" in page


def test_a_model_can_be_given_by_name_or_made_anew(tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "named")
    named = reward_trainer(tmp_path, model=str(tmp_path / "named"))
    made = reward_trainer(tmp_path, model_init=tiny_classifier)

    losses = [trainer.train().training_loss for trainer in (named, made, made)]

    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_scores_are_centered_if_asked_for(tmp_path):
    found = {}
    for coefficient in (None, 0.5):
        trainer = reward_trainer(tmp_path, center_rewards_coefficient=coefficient, max_steps=1)
        batch = trainer.data_collator(trainer.train_dataset.select(range(4)).to_list())
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        found[coefficient] = loss
    sums = outputs["rewards_chosen"] + outputs["rewards_rejected"]

    torch.testing.assert_close(found[0.5] - found[None], 0.5 * sums.square().mean(), rtol=1e-4, atol=1e-6)


# ---- arguments ----


def test_a_tokenizer_has_two_names_and_the_centering_a_range(tmp_path):
    tokenizer = tiny_tokenizer()

    trainer = reward_trainer(tmp_path, tokenizer=None, processing_class=tokenizer)

    assert trainer.processing_class is tokenizer
    with pytest.raises(ValueError, match="one of tokenizer and processing_class, found .*; leave one out"):
        reward_trainer(tmp_path, processing_class=tokenizer)
    with pytest.raises(ValueError, match="center_rewards_coefficient from 0, found -0.1"):
        reward_trainer(tmp_path, center_rewards_coefficient=-0.1)


@needs_shared
@pytest.mark.parametrize("documented", [RewardConfig, RewardTrainer], ids=["config", "trainer"])
def test_arguments_have_the_documented_names_order_and_defaults(documented):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[documented.__name__]

    found = list(inspect.signature(documented).parameters.values())[: len(ledger)]

    for (name, default), argument in zip(ledger, found, strict=True):
        assert argument.name == name
        if argument.default is not inspect.Parameter.empty:
            assert str(default) in (repr(argument.default), str(argument.default))


def test_arguments_of_transformers_4_36_are_carried_over(tmp_path):
    plain = RewardConfig(str(tmp_path), use_cpu=True)
    renamed = RewardConfig(str(tmp_path), evaluation_strategy="epoch", no_cuda=True, warmup_ratio=0.25)

    assert (plain.eval_strategy, plain.activation_checkpointing, plain.bf16) == ("no", True, False)
    assert (renamed.eval_strategy, renamed.use_cpu, renamed.warmup_steps) == ("epoch", True, 0.25)
    assert RewardConfig(str(tmp_path), use_cpu=True, eval_strategy="epoch").eval_strategy == "epoch"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_length": 0}, "expected max_length of at least 1, found 0"),
        ({"too_long": "squeeze"}, "too_long as one of truncate, drop, found 'squeeze'"),
        ({"label_smoothing_factor": 0.1}, "expected label_smoothing_factor 0"),
        ({"dispatch_batches": True}, "dispatch_batches=True.*no such argument.*accelerator_config"),
    ],
)
def test_refuses_values_out_of_range(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(str(tmp_path), use_cpu=True, **given)


def no_model() -> str:
    """The name of a model that there is none of, so that loading it would be another error."""
    return "no/such/model/anywhere"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"args": TrainingArguments("unused", use_cpu=True)}, "expected args as a RewardConfig, found TrainingArgum"),
        ({"max_length": 7}, "expected one max_length, found 7 and args.max_length 8"),
        ({"model_init": tiny_classifier}, "one of model and model_init, found both or none"),
        ({"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM")}, "task_type=.SEQ_CLS.*found 'CAUSAL_LM'"),
        ({"tokenizer": None}, "expected processing_class, a tokenizer with a pad token"),
        ({"train_dataset": [1, 2]}, "train_dataset: expected a datasets.Dataset, found list"),
        ({"train_dataset": Dataset.from_dict({"text": ["a"]})}, "row 0: "),
        (
            {"train_dataset": Dataset.from_dict({"input_ids_chosen": [[1]], "attention_mask_chosen": [[1]]})},
            "expected a column input_ids_rejected beside the other's",
        ),
        (
            {"train_dataset": documented_rows(2).add_column("margin", [1.0, math.nan])},
            "train_dataset: expected a finite number as margin in every pair, found nan in row 1",
        ),
        (
            {"train_dataset": documented_rows(1).add_column("x", [1]).map(lambda _: {"attention_mask_chosen": [1]})},
            "attention mask of as many entries as there are ids, found 1 for 4",
        ),
    ],
    ids=["args", "length", "init", "adapter", "tokenizer", "list", "columns", "half", "margin", "mask"],
)
def test_refuses_bad_arguments_before_a_model_is_loaded(tmp_path, given, message):
    whole = {
        "model": no_model(),
        "args": reward_config(tmp_path, max_length=8),
        "train_dataset": documented_rows(2),
        "tokenizer": tiny_tokenizer(),
    }

    with pytest.raises(ValueError, match=message):
        RewardTrainer(**{**whole, **given})


def test_refuses_models_and_batches_that_give_no_score(tmp_path):
    with pytest.raises(ValueError, match="one label, found LlamaForSequenceClassification with 2"):
        reward_trainer(tmp_path, model=tiny_classifier(num_labels=2))
    with pytest.raises(ValueError, match="expected a batch with input_ids_chosen, found x; let data_collator"):
        reward_trainer(tmp_path, rows=documented_rows(4), data_collator=lambda _: {"x": 1}).train()
    with pytest.raises(ValueError, match="expected a column attention_mask_chosen in each row, found input_ids_chosen"):
        RewardDataCollatorWithPadding(tiny_tokenizer())([{"input_ids_chosen": [1]}])
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="expected a tokenizer with a pad token, found none"):
        RewardDataCollatorWithPadding(tokenizer)(list(documented_rows(2)))
    with pytest.raises(ValueError, match="expected padding as True"):
        RewardDataCollatorWithPadding(tiny_tokenizer(), padding=False)


def test_stops_before_a_score_that_isnt_finite_spoils_the_weights(tmp_path):
    model = tiny_classifier()
    torch.nn.init.constant_(model.score.weight, math.inf)

    with pytest.raises(ValueError, match="step 0: expected finite scores, found others in pair"):
        reward_trainer(tmp_path, model=model).train()
