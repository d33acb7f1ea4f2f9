"""DPOTrainer: its constructor, its losses, and what each defect of TRL looks like when it is right."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainingArguments

from stages.losses.dpo import PAIR_LOSSES, sigmoid_losses
from stages.rows.collation import PreferenceCollator
from stages.rows.raw import PAIR
from stages.trainers import DPOConfig, DPOTrainer
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import (
    dpo_trainer,
    encoded_pairs,
    encoded_rows,
    lines,
    method_config,
    raw_pairs,
    raw_rows,
    tiny_llama,
    tiny_tokenizer,
)

RAW = Dataset.from_list(raw_pairs())


def weights(model):
    return [weight.detach().clone() for weight in model.parameters()]


# ---- the loop ----


def test_it_tells_chosen_from_rejected_completions_in_a_few_steps(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=RAW, max_steps=40, beta=0.5)

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert lines(trainer)[-1]["loss"] < 0.3
    assert lines(trainer)[-1]["rewards/accuracies"] == 1.0


def test_logged_metrics_are_means_over_all_pairs_since_the_last_line(tmp_path):
    rows = encoded_pairs(8)
    trainer = dpo_trainer(
        tmp_path, rows=rows, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    batch = PreferenceCollator(0)(rows.to_list())
    with torch.no_grad():
        policy = trainer.logps_of(tiny_llama(), batch)
    chosen, rejected = policy.logps.chunk(2)
    rewards = 0.1 * (chosen - batch["reference_chosen_logps"]), 0.1 * (rejected - batch["reference_rejected_logps"])

    trainer.train()

    (line,) = lines(trainer)
    assert line["rewards/chosen"] == pytest.approx(rewards[0].mean().item(), rel=1e-5)
    assert line["rewards/rejected"] == pytest.approx(rewards[1].mean().item(), rel=1e-5)
    assert line["rewards/margins"] == pytest.approx((rewards[0] - rewards[1]).mean().item(), rel=1e-4)
    assert line["rewards/accuracies"] == pytest.approx((rewards[0] > rewards[1]).float().mean().item())
    assert line["logps/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert line["logits/rejected"] == pytest.approx(policy.mean_logits[8:].mean().item(), rel=1e-4)


def test_weights_of_pairs_multiply_their_losses(tmp_path):
    found = {}
    for loss_type in ("sigmoid", "kto_pair"):
        for weight in (1.0, 3.0):
            rows = encoded_pairs().remove_columns("weight").add_column("weight", [weight] * 12)
            trainer = dpo_trainer(tmp_path, rows=rows, max_steps=1, loss_type=loss_type)
            trainer.train()
            found[loss_type, weight] = lines(trainer)[0]["loss"]

        assert found[loss_type, 3.0] == pytest.approx(3 * found[loss_type, 1.0], rel=1e-6)


@pytest.mark.parametrize("loss_type", sorted(PAIR_LOSSES))
def test_every_loss_trains(tmp_path, loss_type):
    model = tiny_llama()
    before = weights(model)
    trainer = dpo_trainer(
        tmp_path,
        model=model,
        rows=RAW,
        loss_type=loss_type,
        max_steps=6,
        learning_rate=3e-3,
        per_device_train_batch_size=12,
        # without it the losses of EXO are infinite
        label_smoothing=1e-3 if loss_type == "exo_pair" else 0.0,
    )

    trainer.train()

    losses = [line["loss"] for line in lines(trainer)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert any(not torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    assert (trainer.reference is None) == (not PAIR_LOSSES[loss_type].needs_reference)


def own_losses(logps, settings):
    """Twice the loss of DPO."""
    return 2 * sigmoid_losses(logps, settings)


def test_a_loss_of_ones_own_is_named_by_module_and_function(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=RAW, loss_type=f"{__name__}:own_losses")

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(2 * np.log(2), rel=1e-6)


def test_compute_metrics_sees_the_rewards_of_both_completions(tmp_path):
    found = {}

    def compute(prediction):
        found["rewards"] = prediction.predictions
        return {"share": float(np.mean(prediction.predictions[:, 0] > prediction.predictions[:, 1]))}

    metrics = dpo_trainer(tmp_path, eval_dataset=encoded_pairs(5, seed=1), compute_metrics=compute).evaluate()

    assert found["rewards"].shape == (5, 2)
    assert found["rewards"].mean(0)[0] == pytest.approx(metrics["eval_rewards/chosen"], rel=1e-5)
    assert metrics["eval_share"] == pytest.approx(metrics["eval_rewards/accuracies"])


# ---- TRL's defects, as they should be ----


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_d2_reference_free_takes_all_completions_to_be_as_likely_and_keeps_no_reference(tmp_path, loss_type):
    rows = encoded_pairs()
    trainer = dpo_trainer(tmp_path, rows=rows, reference_free=True, loss_type=loss_type, max_steps=1,
                          per_device_train_batch_size=12)  # fmt: skip
    with torch.no_grad():
        chosen, rejected = trainer.logps_of(tiny_llama(), PreferenceCollator(0)(rows.to_list())).logps.chunk(2)
    margins = 0.1 * (chosen - rejected)
    expected = {"sigmoid": torch.nn.functional.softplus(-margins), "hinge": (1 - margins).relu()}[loss_type]

    trainer.train()

    assert trainer.reference is None
    assert lines(trainer)[0]["loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


@needs_shared
@pytest.mark.parametrize("name", ["tok", "tok_nobos", "tok_padeos", "tok_post"])
@pytest.mark.parametrize("has_own", [False, True], ids=["bare", "with its own bos and eos"])
def test_d3_bos_and_eos_stand_once_where_the_tokenizer_has_them(tmp_path, name, has_own):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "parity" / "assets" / name)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    rows = [
        {
            "prompt": f"{bos if has_own and bos else ''}What color is the sky?",
            "chosen": f" It is blue.{eos if has_own else ''}",
            "rejected": f" In the sea.{eos if has_own else ''}",
        }
    ] * 2
    # ids of these tokenizers reach beyond the vocabulary of the model, which isn't run
    trainer = DPOTrainer(
        tiny_llama(), args=method_config("dpo", tmp_path), train_dataset=Dataset.from_list(rows), tokenizer=tokenizer
    )

    for side in PAIR:
        ids = trainer.train_dataset[0][f"{side}input_ids"]
        assert all(isinstance(token, int) for token in ids)
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert ids[:1] == [tokenizer.bos_token_id] or bos is None
        assert bos is None or ids.count(tokenizer.bos_token_id) == 1


def test_d4_references_are_those_of_the_untrained_policy_in_evaluation_too(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=RAW, eval_dataset=RAW, precompute_ref_log_probs=True)
    with torch.no_grad():
        batch = PreferenceCollator(0)(trainer.eval_dataset.to_list())
        expected = trainer.logps_of(tiny_llama(), batch).logps

    trainer.train()
    metrics = trainer.evaluate()

    for rows in (trainer.train_dataset, trainer.eval_dataset):
        found = torch.tensor([*rows["reference_chosen_logps"][:], *rows["reference_rejected_logps"][:]])
        torch.testing.assert_close(found, expected)
    assert trainer.reference is None
    assert abs(metrics["eval_rewards/chosen"]) > 1e-3
    with pytest.raises(ValueError, match="expected a column reference_chosen_logps, for no reference model is kept"):
        trainer.evaluate(Dataset.from_list(raw_pairs(3)))


def test_d4_a_resumed_run_has_the_references_of_the_untrained_policy(tmp_path):
    settings = {"rows": RAW, "precompute_ref_log_probs": True, "save_strategy": "steps", "save_steps": 1}
    first = dpo_trainer(tmp_path, max_steps=2, **settings)
    first.train()

    resumed = dpo_trainer(tmp_path, max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=True)

    assert resumed.train_dataset["reference_chosen_logps"][:] == first.train_dataset["reference_chosen_logps"][:]
    assert abs(lines(resumed)[-1]["rewards/chosen"]) > 1e-3


def test_d5_several_evaluation_sets_are_told_apart_by_name(tmp_path):
    sets = {"first": encoded_pairs(4), "second": Dataset.from_list(raw_pairs(6))}

    metrics = dpo_trainer(tmp_path, eval_dataset=sets).evaluate()

    assert {"eval_first_loss", "eval_second_loss", "eval_first_rewards/accuracies"} <= set(metrics)


def test_d5_a_tie_is_half_a_hit(tmp_path):
    trainer = dpo_trainer(tmp_path, rows=RAW, eval_dataset=RAW)

    assert trainer.evaluate()["eval_rewards/accuracies"] == 0.5
    trainer.train()
    assert lines(trainer)[0]["rewards/accuracies"] == 0.5


def test_d5_an_evaluation_is_a_mean_over_pairs_and_not_over_batches(tmp_path):
    rows = encoded_pairs(5)
    trainer = dpo_trainer(tmp_path, rows=rows, eval_dataset=rows)

    found = []
    for batch_size in (5, 4, 1):
        trainer.args.per_device_eval_batch_size = batch_size
        metrics = trainer.evaluate()
        found.append([metrics[f"eval_{name}"] for name in ("loss", "rewards/accuracies", "logps/chosen")])

    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_d6_the_kl_of_kto_pair_is_a_constant_unless_asked_otherwise(tmp_path, detach):
    trainer = dpo_trainer(tmp_path, loss_type="kto_pair", detach_kl=detach)

    assert trainer.loss_settings.detach_kl is detach


def test_samples_are_drawn_for_pairs_during_evaluation(tmp_path):
    trainer = dpo_trainer(
        tmp_path, eval_dataset=encoded_pairs(3), ref_model=tiny_llama(seed=1), generate_during_eval=True, max_length=20
    )

    trainer.evaluate()

    assert len((tmp_path / "samples" / "eval-0.jsonl").read_text().splitlines()) == 3


# ---- the constructor ----


def loose(folder, **arguments):
    """Arguments as TRL 0.7.10 documents them."""
    args = TrainingArguments(
        str(folder), max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
        report_to="none", per_device_train_batch_size=4, learning_rate=1e-2,
    )  # fmt: skip
    return DPOTrainer(tiny_llama(), **{"args": args, "train_dataset": RAW, "tokenizer": tiny_tokenizer(), **arguments})


def test_the_documented_arguments_do_what_a_configuration_does(tmp_path):
    settings = {"beta": 0.3, "loss_type": "sigmoid", "label_smoothing": 0.1, "max_length": 12, "max_prompt_length": 4}
    documented = loose(tmp_path, **settings, max_target_length=3)
    documented.train()
    todays = dpo_trainer(tmp_path, rows=RAW, max_steps=2, learning_rate=1e-2, max_completion_length=3, **settings)
    todays.train()

    assert isinstance(documented.args, DPOConfig)
    assert [line["loss"] for line in lines(documented)] == pytest.approx([line["loss"] for line in lines(todays)])
    assert documented.args.max_completion_length == 3
    for one, other in zip(documented.model.parameters(), todays.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_they_may_be_given_by_position(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")

    trainer = DPOTrainer(tiny_llama(), None, 0.2, 0.1, "robust", args, None, -100, 7, "keep_start", RAW, RAW,
                         tiny_tokenizer())  # fmt: skip

    found = trainer.args
    assert (found.beta, found.label_smoothing, found.loss_type) == (0.2, 0.1, "robust")
    assert (found.padding_value, found.truncation_mode) == (7, "keep_start")
    assert len(trainer.eval_dataset) == len(RAW)


def test_arguments_of_training_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    found = loose(tmp_path, args=None, beta=0.4).args

    assert (found.output_dir, found.beta, found.max_length) == ("tmp_trainer", 0.4, 512)


def test_plain_arguments_keep_all_that_they_say(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", seed=7, warmup_steps=3, weight_decay=0.5)

    found = loose(tmp_path, args=args).args

    assert (found.seed, found.warmup_steps, found.weight_decay) == (7, 3, 0.5)
    # their defaults too: this is the rate that people got who said nothing
    assert found.learning_rate == args.learning_rate == 5e-5
    assert found.logging_steps == args.logging_steps == 500


def test_without_lengths_plain_arguments_get_the_documented_ones_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "stages.trainers.dpo.documented_methods"):
        found = loose(tmp_path).args

    assert (found.max_length, found.max_prompt_length) == (512, 128)
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "max_length isn't given: 512 is",
        "max_prompt_length isn't given:",
    ]
    caplog.clear()
    assert loose(tmp_path, args=method_config("dpo", tmp_path)).args.max_length == 1024
    assert not caplog.records


def test_an_argument_that_a_configuration_leaves_open_is_taken(tmp_path):
    found = loose(tmp_path, args=method_config("dpo", tmp_path, max_length=30), beta=0.7, max_length=30).args

    assert (found.beta, found.max_length) == (0.7, 30)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ({"beta": 0.2}, {"beta": 0.3}, "one of beta and args.beta, found 0.3 and 0.2; leave out beta"),
        ({"loss_type": "ipo"}, {"loss_type": "hinge"}, "one of loss_type and args.loss_type"),
        ({"max_completion_length": 4}, {"max_target_length": 5}, "max_target_length and args.max_completion_length"),
        ({}, {"processing_class": tiny_tokenizer()}, "the tokenizer once"),
        ({}, {"args": {"beta": 0.1}}, "args as a DPOConfig or TrainingArguments, found dict"),
    ],
    ids=["beta", "loss_type", "max_target_length", "tokenizer", "args"],
)
def test_arguments_that_contradict_each_other_are_refused(tmp_path, config, given, message):
    with pytest.raises(ValueError, match=message):
        loose(tmp_path, **{"args": method_config("dpo", tmp_path, **config), **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "sigmoidal"}, "did you mean 'sigmoid'"),
        ({"label_smoothing": 0.5}, "label_smoothing from 0 and below 0.5"),
        ({"beta": -1.0}, "beta"),
    ],
)
def test_a_configuration_refuses_what_is_out_of_range(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        method_config("dpo", tmp_path, **given)


def test_a_setting_that_the_loss_does_not_read_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "stages.trainers.dpo.trainer"):
        method_config("dpo", tmp_path, loss_type="hinge", label_smoothing=0.1)

    (record,) = caplog.records
    assert "label_smoothing=0.1 has no effect" in record.getMessage()


def test_single_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="row 0: expected chosen and rejected, found prompt, completion, label"):
        dpo_trainer(tmp_path, rows=Dataset.from_list(raw_rows()))
    with pytest.raises(ValueError, match="expected pairs with a column chosen_input_ids"):
        dpo_trainer(tmp_path, rows=encoded_rows())
