"""KTOTrainer: mismatched rows, the estimate of the divergence, weights, and TRL's defects as they should be."""

import logging

import pytest
import torch
from datasets import Dataset

from stages.losses.kto import kto_losses, mismatched_kl
from stages.rows.collation import PreferenceCollator
from stages.rows.raw import MISMATCHED
from tests.trainers.tiny import encoded_rows, kto_trainer, lines, method_config, raw_pairs, raw_rows, tiny_llama

RAW = Dataset.from_list(raw_rows())


def mismatched_ratios(trainer, rows, reference):
    """Policy minus reference of each mismatched row, computed one row at a time."""
    found = []
    for row in rows:
        batch = PreferenceCollator(0)([row])
        with torch.no_grad():
            pair = [trainer.logps_of(model, batch, [MISMATCHED]).logps for model in (trainer.model, reference)]
        found.append((pair[0] - pair[1]).item())
    return torch.tensor(found)


# ---- the loop ----


def test_the_first_step_costs_a_half_where_the_reference_is_the_policy(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW)

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(0.5, rel=1e-6)
    assert lines(trainer)[0]["kl"] == 0.0


def test_it_tells_desired_from_undesired_rows_in_a_few_steps(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW, max_steps=40, beta=0.5)

    trainer.train()

    assert lines(trainer)[-1]["rewards/margins"] > 1.0
    assert lines(trainer)[-1]["loss"] < 0.4


def test_a_step_has_the_loss_and_the_kl_of_its_rows(tmp_path):
    reference = tiny_llama(seed=1)
    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = kto_trainer(
        tmp_path, rows=RAW, ref_model=tiny_llama(seed=1), max_steps=1, per_device_train_batch_size=12, **settings
    )
    batch = PreferenceCollator(0)(trainer.train_dataset.to_list())
    with torch.no_grad():
        policy, frozen = (trainer.logps_of(model, batch).logps for model in (trainer.model, reference))
    ratios = mismatched_ratios(trainer, trainer.train_dataset, reference)
    kl = mismatched_kl(ratios, torch.zeros(12))
    losses = kto_losses(policy, frozen, batch["label"], kl, **settings)
    rewards = 0.3 * (policy - frozen)

    trainer.train()

    (line,) = lines(trainer)
    assert line["kl"] == pytest.approx(kl.item(), rel=1e-4, abs=1e-5)
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert line["rewards/chosen"] == pytest.approx(rewards[batch["label"]].mean().item(), rel=1e-4)
    assert line["rewards/rejected"] == pytest.approx(rewards[~batch["label"]].mean().item(), rel=1e-4)


def test_the_kl_is_0_where_the_mean_ratio_is_below(tmp_path):
    found = []
    for seeds in ((0, 1), (1, 0)):
        trainer = kto_trainer(
            tmp_path, model=tiny_llama(seed=seeds[0]), ref_model=tiny_llama(seed=seeds[1]), rows=RAW, max_steps=1,
            per_device_train_batch_size=12,
        )  # fmt: skip
        trainer.train()
        found.append(lines(trainer)[0]["kl"])

    # The policy of one is the reference of the other, so one of the mean ratios is below 0.
    assert min(found) == 0.0
    assert max(found) > 0.1


def test_weights_of_rows_multiply_their_losses(tmp_path):
    heavy = encoded_rows().remove_columns("weight").add_column("weight", [2.0] * 12)

    losses = []
    for rows in (encoded_rows(), heavy):
        trainer = kto_trainer(tmp_path, rows=rows, max_steps=1)
        trainer.train()
        losses.append(lines(trainer)[0]["loss"])

    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_weights_of_classes_multiply_the_losses_of_theirs(tmp_path):
    found = {}
    for name, weights in {"both": (1.0, 1.0), "desired": (1.0, 0.0), "undesired": (0.0, 1.0)}.items():
        trainer = kto_trainer(
            tmp_path, rows=encoded_rows(), max_steps=1, desirable_weight=weights[0], undesirable_weight=weights[1]
        )
        trainer.train()
        found[name] = lines(trainer)[0]["loss"]

    assert found["both"] == pytest.approx(found["desired"] + found["undesired"], rel=1e-5)
    assert min(found.values()) > 0.0


def test_compute_loss_called_directly_estimates_the_kl_of_its_own_batch(tmp_path):
    reference = tiny_llama(seed=1)
    trainer = kto_trainer(tmp_path, model=tiny_llama(seed=2), ref_model=tiny_llama(seed=1), rows=RAW)
    trainer.model.eval()
    rows = trainer.train_dataset.select(range(5))
    batch = trainer.data_collator(rows.to_list())

    loss, result = trainer.compute_loss(trainer.model, batch, return_outputs=True)

    expected = mismatched_kl(mismatched_ratios(trainer, rows, reference), torch.zeros(5))
    torch.testing.assert_close(batch["kl"], expected.expand(5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, result.losses.mean())
    assert loss.requires_grad


def test_estimating_the_kl_leaves_the_mode_and_the_gradients_of_the_policy_alone(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW)
    trainer.model.train()
    batch = trainer.data_collator(trainer.train_dataset.to_list())

    trainer.look_ahead(trainer.model, [batch], is_training=True)

    assert trainer.model.training
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert not batch["kl"].requires_grad


def test_apo_zero_makes_and_scores_no_mismatched_rows(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW, loss_type="apo_zero_unpaired")
    trainer.train()

    assert not [name for name in trainer.train_dataset.column_names if name.startswith(MISMATCHED)]
    assert [line["kl"] for line in lines(trainer)] == [0.0] * 3
    assert lines(trainer)[0]["loss"] == pytest.approx(0.5, rel=1e-6)


def own_losses(policy_logps, reference_logps, labels, kl, *, beta, desirable_weight, undesirable_weight):
    """Half the loss of KTO."""
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto_losses(policy_logps, reference_logps, labels, kl, beta=beta, **weights) / 2


def test_a_loss_of_ones_own_is_named_by_module_and_function(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW, loss_type=f"{__name__}:own_losses")

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(0.25, rel=1e-6)


# ---- TRL's defects, as they should be ----


def test_k1_batches_of_paired_data_hold_both_classes(tmp_path):
    seen = []
    collator = PreferenceCollator(0)

    def collate(rows):
        seen.append({row["label"] for row in rows})
        return collator(rows)

    rows = Dataset.from_list(raw_pairs(12))
    kto_trainer(tmp_path, rows=rows, data_collator=collate, max_steps=6).train()

    assert seen[:6] == [{True, False}] * 6


@pytest.mark.parametrize("number", [2, 3, 5, 9])
def test_k2_no_mismatched_row_is_the_row_itself_in_training_or_evaluation(tmp_path, number):
    rows = Dataset.from_list([{**row, "prompt": f"{row['prompt']} {'sea ' * place}"}
                              for place, row in enumerate(raw_rows(number))])  # fmt: skip

    # The batch size, which TRL cuts blocks by, leaves a last block of one row.
    trainer = kto_trainer(tmp_path, rows=rows, eval_dataset=rows, per_device_train_batch_size=2)

    for found in (trainer.train_dataset, trainer.eval_dataset):
        own = [row["input_ids"][row["prompt_length"] :] for row in found]
        for row in found:
            length = row["prompt_length"]
            assert row["kl_prompt_length"] == length
            assert row["kl_input_ids"][:length] == row["input_ids"][:length]
            others = [completion for completion in own if completion != row["input_ids"][length:]]
            assert any(row["kl_input_ids"][length:] == ids[: len(row["kl_input_ids"]) - length] for ids in others)


def test_mismatched_rows_are_the_same_for_any_batch_size_and_epoch(tmp_path):
    tables = [
        kto_trainer(tmp_path, rows=RAW, per_device_train_batch_size=size).train_dataset["kl_input_ids"][:]
        for size in (2, 5)
    ]

    assert tables[0] == tables[1]


def test_rows_of_one_prompt_are_refused_unless_the_loss_needs_no_mismatched_ones(tmp_path):
    rows = Dataset.from_list([{**row, "prompt": "what is"} for row in raw_rows()])

    with pytest.raises(ValueError, match="train_dataset: expected at least two prompts.*apo_zero_unpaired"):
        kto_trainer(tmp_path, rows=rows)
    kto_trainer(tmp_path, rows=rows, loss_type="apo_zero_unpaired").train()


# ---- data ----


@pytest.mark.parametrize("kind", ["raw", "encoded"])
def test_a_dataset_given_to_evaluate_gets_its_mismatched_rows(tmp_path, kind):
    trainer = kto_trainer(tmp_path, rows=RAW)

    metrics = trainer.evaluate(RAW if kind == "raw" else encoded_rows(5))

    assert metrics["eval_kl"] >= 0.0
    assert metrics["eval_loss"] > 0.0


def test_a_policy_whose_look_ahead_fails_stays_in_training_mode(tmp_path, monkeypatch):
    trainer = kto_trainer(tmp_path, rows=RAW)
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.to_list()))
    monkeypatch.setattr(trainer, "logps_of", lambda *_: batch["missing"])

    with pytest.raises(KeyError, match="missing"):
        trainer.look_ahead(trainer.model, [{**batch, "reference_kl_logps": torch.zeros(12)}], is_training=True)

    assert trainer.model.training


def test_the_divergence_of_an_evaluation_is_that_of_all_processes(tmp_path, monkeypatch):
    trainer = kto_trainer(tmp_path, rows=RAW, eval_dataset=RAW, max_steps=1, per_device_eval_batch_size=12)
    trainer.train()
    alone = trainer.evaluate()["eval_kl"]
    # As if another process had as many rows again, whose divergence adds up to 24.
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda sums, reduction: sums + torch.tensor([24.0, 12.0]))
    batch = trainer._prepare_inputs(trainer.data_collator(trainer.eval_dataset.to_list()))

    trainer.look_ahead(trainer.model, [batch], is_training=False)

    assert batch["kl"][0].item() == pytest.approx((alone + 2.0) / 2, rel=1e-4)


def test_the_loss_of_an_evaluation_is_a_mean_over_rows(tmp_path):
    # without the divergence, which is that of a batch
    rows = encoded_rows(5)
    trainer = kto_trainer(tmp_path, rows=rows, eval_dataset=rows, loss_type="apo_zero_unpaired")

    found = []
    for batch_size in (5, 4, 1):
        trainer.args.per_device_eval_batch_size = batch_size
        metrics = trainer.evaluate()
        found.append([metrics[f"eval_{name}"] for name in ("loss", "rewards/chosen", "logps/rejected")])

    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_references_of_mismatched_rows_are_precomputed_too(tmp_path):
    trainer = kto_trainer(tmp_path, rows=RAW, eval_dataset=RAW, precompute_ref_log_probs=True)

    found = torch.tensor(trainer.eval_dataset["reference_kl_logps"][:])

    batch = PreferenceCollator(0)(trainer.eval_dataset.to_list())
    with torch.no_grad():
        expected = trainer.logps_of(tiny_llama(), batch, [MISMATCHED]).logps
    torch.testing.assert_close(found, expected)
    assert trainer.reference is None
    trainer.train()


def test_predict_gives_rewards_and_labels(tmp_path):
    output = kto_trainer(tmp_path, rows=RAW).predict(RAW.select(range(4)))

    assert output.predictions.shape == (4,)
    assert output.label_ids.tolist() == [0, 1, 1, 0]
    assert "test_rewards/margins" in output.metrics


# ---- warnings and errors ----


def test_weights_that_leave_the_classes_unbalanced_are_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "stages.trainers.kto.trainer"):
        kto_trainer(tmp_path, rows=encoded_rows(12), eval_dataset=encoded_rows(12))

    # 8 desired rows and 4 undesired ones: 4 * 1 / 8 to 1.33 times that, or 8 * 1 / 4 and less
    (record,) = caplog.records
    assert "train_dataset: expected weights that balance 8 desired and 4 undesired rows" in record.getMessage()
    assert "desirable_weight from 0.5 to 0.67, or undesirable_weight from 1.5 to 2.0" in record.getMessage()


@pytest.mark.parametrize("weights", [{"desirable_weight": 0.6}, {"undesirable_weight": 1.8}])
def test_weights_in_their_range_are_not_warned_of(tmp_path, caplog, weights):
    with caplog.at_level(logging.WARNING, "stages.trainers.kto.trainer"):
        kto_trainer(tmp_path, rows=encoded_rows(12), **weights)

    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "ktoo"}, "did you mean 'kto'"),
        ({"desirable_weight": -1.0}, "from 0, found -1.0 and 1.0"),
        ({"beta": 0.0}, "beta above 0"),
    ],
)
def test_a_configuration_refuses_what_is_out_of_range(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        method_config("kto", tmp_path, **given)
