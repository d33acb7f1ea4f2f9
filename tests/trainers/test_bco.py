"""BCOTrainer: what each defect of TRL looks like when it is right, and the rest of its behaviour."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainingArguments

from stages.losses.bco import bco_loss
from stages.losses.moments import RewardMoments
from stages.rows.collation import PreferenceCollator
from stages.trainers.bco.trainer import BCOTrainer
from tests.trainers.tiny import bco_config, bco_trainer, encoded_rows, raw_rows, tiny_llama, tiny_tokenizer


def lines(trainer, name="loss"):
    return [line for line in trainer.state.log_history if name in line]


# ---- the loop ----


def test_the_first_step_costs_log_two_where_the_reference_is_the_policy(tmp_path):
    trainer = bco_trainer(tmp_path, rows=Dataset.from_list(raw_rows()))

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_it_tells_desired_from_undesired_rows_in_a_few_steps(tmp_path):
    trainer = bco_trainer(tmp_path, rows=Dataset.from_list(raw_rows()), max_steps=40, beta=0.5)

    trainer.train()

    assert lines(trainer)[-1]["rewards/margins"] > 1.0
    assert lines(trainer)[-1]["loss"] < 0.5


def test_logged_metrics_are_means_over_all_rows_since_the_last_line(tmp_path):
    rows = encoded_rows(8)
    trainer = bco_trainer(
        tmp_path, rows=rows, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    batch = PreferenceCollator(0)(rows.to_list())
    with torch.no_grad():
        policy = trainer.logps_of(tiny_llama(), batch)
    labels = batch["label"]
    rewards = 0.1 * (policy.logps - batch["reference_logps"])

    trainer.train()

    (line,) = lines(trainer)
    assert line["rewards/chosen"] == pytest.approx(rewards[labels].mean().item(), rel=1e-5)
    assert line["rewards/rejected"] == pytest.approx(rewards[~labels].mean().item(), rel=1e-5)
    assert line["rewards/margins"] == pytest.approx((rewards[labels].mean() - rewards[~labels].mean()).item(), rel=1e-4)
    assert line["logps/chosen"] == pytest.approx(policy.logps[labels].mean().item(), rel=1e-5)
    assert line["logits/rejected"] == pytest.approx(policy.mean_logits[~labels].mean().item(), rel=1e-4)


def test_weights_and_offsets_of_the_columns_reach_the_loss(tmp_path):
    generator = np.random.default_rng(0)
    rows = encoded_rows(6)
    for name in ("desired_weight", "undesired_weight", "logit_offset"):
        rows = rows.add_column(name, generator.uniform(0.5, 2.0, 6))
    rows = rows.remove_columns("weight").add_column("weight", generator.uniform(0.5, 2.0, 6))
    trainer = bco_trainer(tmp_path, rows=rows, max_steps=1, per_device_train_batch_size=6)
    batch = PreferenceCollator(0)(rows.to_list())
    with torch.no_grad():
        logps = trainer.logps_of(tiny_llama(), batch).logps
    rewards = 0.1 * (logps - batch["reference_logps"])
    expected = bco_loss(
        logps, batch["reference_logps"], batch["label"], beta=0.1, reward_shift=rewards.mean(),
        weights=batch["weight"] * torch.where(batch["label"], batch["desired_weight"], batch["undesired_weight"]),
        logit_offsets=batch["logit_offset"],
    ).losses.mean()  # fmt: skip

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_custom_collator_callbacks_and_optimizers_are_used(tmp_path):
    seen = []

    class Counting(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append("callback")

    collator = PreferenceCollator(0)

    def collate(rows):
        seen.append("collator")
        return collator(rows)

    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    trainer = bco_trainer(
        tmp_path, model=model, data_collator=collate, callbacks=[Counting()], optimizers=(optimizer, schedule)
    )
    trainer.train()

    assert seen.count("callback") == 3
    assert seen.count("collator") >= 3
    assert lines(trainer)[-1]["learning_rate"] == 0.1


def test_compute_metrics_sees_the_reward_and_the_label_of_each_row(tmp_path):
    found = {}

    def compute(prediction):
        found["predictions"], found["labels"] = prediction.predictions, prediction.label_ids
        return {"accuracy": float(np.mean((prediction.predictions > 0) == prediction.label_ids))}

    trainer = bco_trainer(
        tmp_path,
        eval_dataset=encoded_rows(5),
        compute_metrics=compute,
        preprocess_logits_for_metrics=lambda rewards, labels: rewards * 2,
    )
    metrics = trainer.evaluate()

    assert 0 <= metrics["eval_accuracy"] <= 1
    assert found["labels"].tolist() == [0, 1, 1, 0, 1]
    doubled = found["predictions"][found["labels"] == 1].mean()
    assert doubled == pytest.approx(2 * metrics["eval_rewards/chosen"], rel=1e-5)


# ---- TRL's defects, as they should be ----


def test_b1_precomputed_references_are_those_of_the_untrained_policy_in_evaluation_too(tmp_path):
    rows = Dataset.from_list(raw_rows())
    trainer = bco_trainer(tmp_path, rows=rows, eval_dataset=rows, precompute_ref_log_probs=True)
    with torch.no_grad():
        expected = trainer.logps_of(tiny_llama(), PreferenceCollator(0)(trainer.eval_dataset.to_list())).logps

    trainer.train()
    metrics = trainer.evaluate()

    torch.testing.assert_close(torch.tensor(trainer.eval_dataset["reference_logps"][:]), expected)
    assert trainer.reference is None
    assert abs(metrics["eval_rewards/chosen"]) > 1e-3
    with pytest.raises(ValueError, match="expected a column reference_logps, for no reference model is kept"):
        trainer.evaluate(Dataset.from_list(raw_rows(4)))


def test_b4_labels_as_numbers_train_like_booleans(tmp_path):
    numbers = [{**row, "label": int(row["label"])} for row in raw_rows()]

    losses = []
    for rows in (raw_rows(), numbers):
        trainer = bco_trainer(tmp_path, rows=Dataset.from_list(rows))
        trainer.train()
        losses.append([line["loss"] for line in lines(trainer)])

    assert losses[0] == losses[1]


def test_b5_the_default_order_is_a_shuffle_that_differs_between_epochs(tmp_path):
    order = []
    collator = PreferenceCollator(0)

    def collate(rows):
        order.extend(row["row_id"] for row in rows)
        return collator(rows)

    trainer = bco_trainer(tmp_path, data_collator=collate, max_steps=-1, num_train_epochs=2)
    trainer.train()

    assert sorted(order[:12]) == sorted(order[12:]) == sorted(f"id{i}" for i in range(12))
    assert order[:12] != order[12:]
    assert order[:12] != [f"id{i}" for i in range(12)]


def test_b6_batches_hold_both_classes_though_a_table_has_one_behind_the_other(tmp_path):
    found = encoded_rows(24)
    rows = found.select(sorted(range(24), key=lambda index: found[index]["label"]))
    seen = []
    collator = PreferenceCollator(0)

    def collate(batch):
        seen.append({row["label"] for row in batch})
        return collator(batch)

    bco_trainer(tmp_path, rows=rows, data_collator=collate, max_steps=6).train()

    assert seen[:6] == [{True, False}] * 6


@pytest.mark.parametrize("eval_on_start", [True, False])
def test_b7_it_evaluates_before_training(tmp_path, eval_on_start):
    trainer = bco_trainer(tmp_path, eval_dataset=encoded_rows(5), eval_on_start=eval_on_start, eval_strategy="epoch")
    if eval_on_start:
        trainer.train()
    else:
        trainer.evaluate()

    assert lines(trainer, "eval_loss")[0]["eval_delta"] == 0.0
    assert math.isfinite(lines(trainer, "eval_loss")[0]["eval_loss"])


def test_b8_a_balanced_shift_is_not_pulled_to_the_majority(tmp_path):
    rows = encoded_rows(12)
    shifts = {}
    for kind in ("pooled", "balanced"):
        trainer = bco_trainer(tmp_path, rows=rows, max_steps=1, per_device_train_batch_size=12, reward_shift=kind)
        trainer.train()
        line = lines(trainer)[0]
        shifts[kind] = line["delta"]

    assert shifts["balanced"] == pytest.approx((line["rewards/chosen"] + line["rewards/rejected"]) / 2, rel=1e-5)
    assert shifts["pooled"] == pytest.approx((8 * line["rewards/chosen"] + 4 * line["rewards/rejected"]) / 12, rel=1e-5)


def test_b9_the_reward_shift_is_saved_with_the_model_alone_as_plain_finite_json(tmp_path):
    trainer = bco_trainer(tmp_path, max_steps=1, per_device_train_batch_size=2, save_only_model=True,
                          save_strategy="steps", save_steps=1)  # fmt: skip
    trainer.train()

    state = json.loads((tmp_path / "checkpoint-1" / "preference_state.json").read_text(), parse_constant=pytest.fail)

    assert not (tmp_path / "checkpoint-1" / "optimizer.pt").exists()
    assert sum(state["method"]["rewards"]["counts"]) == 2
    other = bco_trainer(tmp_path)
    other.restore_method_state(state["method"])
    assert torch.equal(other.shift.moments.shift("pooled"), trainer.shift.moments.shift("pooled"))


@pytest.mark.parametrize("where", ["policy", "reference"])
def test_b14_a_row_that_is_not_finite_stops_the_run_before_the_step_and_is_named(tmp_path, where):
    model = tiny_llama()
    trainer = bco_trainer(tmp_path, model=model, max_steps=3)
    if where == "policy":
        with torch.no_grad():
            model.get_input_embeddings().weight[trainer.train_dataset[7]["input_ids"][0]] = torch.nan
    else:
        # behind the check of the datasets, as a broken collator may do
        collator = trainer.data_collator
        trainer.data_collator = lambda rows: collator([{**row, "reference_logps": np.inf} for row in rows])
    before = [weight.clone() for weight in model.parameters()]

    with pytest.raises(ValueError, match=r"expected finite log-probabilities, found others in id\d"):
        trainer.train()

    assert trainer.shift.moments.shift("pooled").isfinite()
    if where == "reference":
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("disable_dropout", [True, False])
def test_b17_dropout_is_off_in_the_model_but_not_in_the_adapter(tmp_path, disable_dropout):
    model = tiny_llama(dropout=0.3)
    adapter = LoraConfig(r=2, lora_dropout=0.25, target_modules=["q_proj"], task_type="CAUSAL_LM")

    trainer = bco_trainer(tmp_path, model=model, peft_config=adapter, disable_dropout=disable_dropout)

    layer = trainer.model.base_model.model.model.layers[0].self_attn
    assert layer.attention_dropout == (0.0 if disable_dropout else 0.3)
    assert layer.q_proj.lora_dropout["default"].p == 0.25


def test_b18_logits_metrics_do_not_depend_on_padding(tmp_path):
    rows = encoded_rows(6)
    trainer = bco_trainer(tmp_path, rows=rows, eval_dataset=rows)

    found = []
    for batch_size in (1, 6):
        trainer.args.per_device_eval_batch_size = batch_size
        found.append(trainer.evaluate()["eval_logits/chosen"])

    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert abs(found[0]) < 10


@pytest.mark.parametrize(("labels", "sampled"), [([True, True, False], 1), ([True, False, False], 2), ([True] * 3, 0)])
def test_b19_samples_are_drawn_however_few_undesired_rows_there_are(tmp_path, labels, sampled):
    rows = encoded_rows(3).remove_columns("label").add_column("label", labels)
    reference = tiny_llama(seed=1)
    with torch.no_grad():
        reference.lm_head.weight.mul_(100.0)
    trainer = bco_trainer(tmp_path, eval_dataset=rows, ref_model=reference, generate_during_eval=True, max_length=20)
    trainer.evaluate()

    file = tmp_path / "samples" / "eval-0.jsonl"
    table = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert len(table) == sampled
    for row in table:
        assert set(row) == {"prompt", "policy", "reference"}
        assert row["policy"] != row["reference"]


def test_b20_a_model_init_makes_policy_and_reference(tmp_path):
    trainer = bco_trainer(tmp_path, model_init=tiny_llama, rows=Dataset.from_list(raw_rows()))

    histories = []
    for _ in range(2):
        trainer.train()
        histories.append([line["loss"] for line in lines(trainer)])

    assert histories[0][0] == pytest.approx(math.log(2), rel=1e-6)
    assert histories[0] == histories[1]


def test_b20_several_evaluation_sets_are_told_apart_by_name(tmp_path):
    sets = {"first": encoded_rows(4), "second": Dataset.from_list(raw_rows(6))}

    metrics = bco_trainer(tmp_path, eval_dataset=sets).evaluate()

    assert {"eval_first_loss", "eval_second_loss", "eval_first_rewards/chosen", "eval_second_delta"} <= set(metrics)


def test_b20_the_padding_value_given_fills_short_rows(tmp_path):
    trainer = BCOTrainer(tiny_llama(), args=bco_config(tmp_path, padding_value=9), train_dataset=encoded_rows())

    assert trainer.data_collator(trainer.train_dataset.to_list())["input_ids"][0, -1] == 9


def test_eval_loss_weighs_rows_and_not_batches(tmp_path):
    rows = encoded_rows(5)
    trainer = bco_trainer(tmp_path, rows=rows, eval_dataset=rows)

    found = []
    for batch_size in (5, 4, 1):
        trainer.args.per_device_eval_batch_size = batch_size
        found.append(trainer.evaluate()["eval_loss"])

    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_evaluation_moves_neither_the_shift_nor_the_metrics_of_training(tmp_path):
    silent = bco_trainer(tmp_path)
    silent.train()
    evaluating = bco_trainer(tmp_path, eval_dataset=encoded_rows(6, seed=3), eval_strategy="steps", eval_steps=1)
    evaluating.train()

    assert lines(silent) == lines(evaluating)


def test_predict_gives_rewards_and_labels(tmp_path):
    output = bco_trainer(tmp_path).predict(encoded_rows(4))

    assert output.predictions.shape == (4,)
    assert output.label_ids.tolist() == [0, 1, 1, 0]
    assert "test_rewards/margins" in output.metrics


# ---- errors ----


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_one_class_are_refused(tmp_path, label):
    rows = encoded_rows(4).remove_columns("label").add_column("label", [label] * 4)

    with pytest.raises(ValueError, match="expected desired and undesired rows, found [04] desired of 4"):
        bco_trainer(tmp_path, rows=rows)


def test_weights_of_zero_stop_the_run(tmp_path):
    rows = encoded_rows().remove_columns("weight").add_column("weight", [0.0] * 12)

    with pytest.raises(ValueError, match="found no gradient in the first 10 steps"):
        bco_trainer(tmp_path, rows=rows, max_steps=20).train()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    model = tiny_llama()
    model.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = model.lm_head.weight.detach().clone()

    with pytest.raises(ValueError, match="expected a finite gradient, found norm"):
        bco_trainer(tmp_path, model=model).train()

    assert torch.equal(model.lm_head.weight, before)


def test_construction_says_what_is_wrong(tmp_path):
    model, rows = tiny_llama(), encoded_rows()
    with pytest.raises(ValueError, match="expected args as a BCOConfig, found TrainingArguments"):
        BCOTrainer(model, args=TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=rows)
    with pytest.raises(ValueError, match="model_init_kwargs only with model as a name"):
        bco_trainer(tmp_path, model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="ref_model_init_kwargs only with ref_model as a name"):
        bco_trainer(tmp_path, ref_model=tiny_llama(), ref_model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="as ref_model another model"):
        bco_trainer(tmp_path, model=model, ref_model=model)
    with pytest.raises(ValueError, match="one of model and model_init"):
        BCOTrainer(args=bco_config(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="expected processing_class, a tokenizer with a pad token"):
        BCOTrainer(model, args=bco_config(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match=r"expected a datasets\.Dataset, found list_iterator"):
        bco_trainer(tmp_path, rows=iter(raw_rows()))


def without_padding():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": iter(raw_rows())}, r"train_dataset: expected a datasets\.Dataset, found list_iterator"),
        ({"eval_dataset": {"a": [1, 2]}}, r"eval_dataset a: expected a datasets\.Dataset, found list"),
        ({"rows": encoded_rows().remove_columns("label")}, "train_dataset: expected a column label"),
        ({"rows": Dataset.from_list([{"text": "a"}])}, "train_dataset: row 0: expected prompt and completion"),
        ({"data_collator": None, "processing_class": without_padding()}, "a tokenizer with a pad token"),
        ({"rows": Dataset.from_list([])}, "train_dataset: expected rows, found none"),
        ({"ref_model_init_kwargs": {"dtype": "float32"}}, "expected ref_model, a name to load"),
        ({"ref_model": "other", "ref_adapter_name": "frozen"}, "one of ref_model and ref_adapter_name, found both"),
    ],
)
def test_arguments_are_validated_before_loading_the_model(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        bco_trainer(tmp_path, model=str(tmp_path / "nowhere"), **arguments)


def test_a_model_and_a_reference_may_be_given_by_name(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "policy")
    tiny_llama(seed=1).save_pretrained(tmp_path / "reference")

    trainer = BCOTrainer(
        str(tmp_path / "policy"),
        str(tmp_path / "reference"),
        bco_config(tmp_path, model_init_kwargs={"dtype": "bfloat16"}, ref_model_init_kwargs={"torch_dtype": "float32"}),
        Dataset.from_list(raw_rows()),
        processing_class=tiny_tokenizer(),
    )

    assert trainer.model.dtype == torch.bfloat16
    assert torch.equal(trainer.reference.model.lm_head.weight, tiny_llama(seed=1).lm_head.weight)
    with pytest.raises(ValueError, match=r'model_init_kwargs\["dtype"\] as "auto" or a type of torch, found .floot'):
        bco_trainer(tmp_path, model=str(tmp_path / "policy"), model_init_kwargs={"dtype": "floot"})


def test_a_step_moves_the_shift_alike_however_its_rows_are_cut(tmp_path):
    def moments(**cut):
        trainer = bco_trainer(tmp_path, max_steps=2, learning_rate=0.0, reward_shift_update="step", **cut)
        trainer.train()
        return trainer.shift.moments, [line["delta"] for line in lines(trainer)]

    whole, shifts = moments(per_device_train_batch_size=4)
    cut, cut_shifts = moments(per_device_train_batch_size=2, gradient_accumulation_steps=2)

    assert isinstance(whole, RewardMoments)
    for found, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(found, expected)
    assert shifts == pytest.approx(cut_shifts)
    assert shifts[0] == 0.0


def test_it_saves_tokenizer_state_and_card_and_reads_itself_back(tmp_path):
    trainer = bco_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    again = bco_trainer(tmp_path, model=str(tmp_path / "saved"))

    assert torch.equal(again.model.lm_head.weight, trainer.model.lm_head.weight)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "Binary Classifier Optimization" in card
    assert "| beta | 0.1 |" in card
    assert {"tokenizer.json", "preference_state.json"} <= {file.name for file in (tmp_path / "saved").iterdir()}
