"""What methods add to their losses and compare with, against formulas written out on plain logits."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import HfArgumentParser, TrainerCallback

from stages.rows.collation import PreferenceCollator, stacked
from stages.rows.raw import PAIR
from stages.trainers import DPOConfig
from tests.trainers.tiny import (
    METHODS,
    encoded_pairs,
    encoded_rows,
    lines,
    method_config,
    method_trainer,
    raw_pairs,
    tiny_llama,
    tiny_mixtral,
    tiny_t5,
)

EACH_METHOD = pytest.mark.parametrize("method", METHODS)
BETA = 0.5


def without_reference(method, number=6):
    """Encoded rows that don't say what the reference gives them, and weights that differ."""
    rows = METHODS[method].encoded(number)
    names = [name for name in rows.column_names if name.startswith("reference_") or name == "weight"]
    return rows.remove_columns(names).add_column("weight", [1.0 + row / 2 for row in range(number)])


def tokens_of(model, batch, sequences):
    """Log-probability of each token, collision entropy there, and whether it is of the completion; all (k n, t - 1)."""
    ids, attention, mask = (
        stacked(batch, sequences, name) for name in ("input_ids", "attention_mask", "completion_mask")
    )
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    probabilities = logits.softmax(-1)
    logps = probabilities.gather(-1, ids[:, 1:, None]).squeeze(-1).log()
    return logps, -probabilities.square().sum(-1).log(), mask[:, 1:].bool()


def in_words(method, terms, model, reference, batch):
    """Mean loss of a batch, by what the papers write."""
    sequences = PAIR if method == "dpo" else ("",)
    ours, entropies, mask = tokens_of(model, batch, sequences)
    theirs = tokens_of(reference, batch, sequences)[0].detach()
    number = mask.sum(-1)
    nll = -(ours * mask).sum(-1) / number
    weights = (((ours + entropies) * mask).sum(-1) / number).exp().detach()
    ratios = ours - theirs
    if "humanline" in terms:
        ratios = ratios.clamp(terms["log_epsilon_p"], terms["log_epsilon_r"])
    of_token = mask.float()
    if "ld_alpha" in terms:
        shared = number.view(2, -1).amin(0).repeat(2)
        of_token = torch.where(mask.cumsum(-1) > shared[:, None], terms["ld_alpha"], 1.0) * mask
    rewards = BETA * (ratios * of_token).sum(-1)
    if method == "dpo":
        chosen, rejected = rewards.chunk(2)
        losses = -logsigmoid(chosen - rejected) + terms.get("rpo_alpha", 0.0) * nll.chunk(2)[0]
        weights = weights.chunk(2)[0] * weights.chunk(2)[1]
    else:
        labels = batch["label"]
        if method == "bco":
            shift = rewards.mean().detach()
        else:
            mismatched, _, on = tokens_of(model, batch, ("kl_",))
            ratios = mismatched - tokens_of(reference, batch, ("kl_",))[0]
            if "humanline" in terms:
                ratios = ratios.clamp(terms["log_epsilon_p"], terms["log_epsilon_r"])
            shift = BETA * (ratios * on).sum(-1).mean().clamp(min=0).detach()
        signed = torch.where(labels, rewards - shift, shift - rewards)
        losses = -logsigmoid(signed) if method == "bco" else (-signed).sigmoid()
        losses = losses + terms.get("rpo_alpha", 0.0) * nll * labels
    losses = losses * batch["weight"]
    return (losses * weights if "use_weighting" in terms else losses).mean()


TERMS = {
    "rpo_alpha": {"rpo_alpha": 0.7},
    "use_weighting": {"use_weighting": True},
    "humanline": {"humanline": True, "log_epsilon_p": -0.05, "log_epsilon_r": 0.1},
    "all": {"rpo_alpha": 0.7, "use_weighting": True, "humanline": True, "log_epsilon_p": -0.05, "log_epsilon_r": 0.1},
}
OF_PAIRS = {"ld_alpha": {"ld_alpha": 0.3}, "all of pairs": {**TERMS["all"], "ld_alpha": 0.3}}
CASES = [(method, terms) for method in METHODS for terms in TERMS.values()]
CASES += [("dpo", terms) for terms in OF_PAIRS.values()]
NAMES = [f"{method} {name}" for method in METHODS for name in TERMS] + [f"dpo {name}" for name in OF_PAIRS]


@pytest.mark.parametrize(("method", "terms"), CASES, ids=NAMES)
def test_loss_and_gradients_are_those_of_the_formula_on_plain_logits(tmp_path, method, terms):
    rows, reference = without_reference(method), tiny_llama(seed=3)
    trainer = method_trainer(method, tmp_path, rows=rows, ref_model=tiny_llama(seed=3), beta=BETA, **terms)
    batch, policy = PreferenceCollator(0)(trainer.train_dataset.to_list()), tiny_llama()

    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    expected = in_words(method, terms, policy, reference, batch)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, weight in zip(trainer.model.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(found.grad, weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "terms"),
    [("bco", TERMS["all"]), ("kto", TERMS["all"]), ("dpo", OF_PAIRS["all of pairs"])],
    ids=METHODS,
)
def test_eight_rows_at_once_are_fewer_accumulated(tmp_path, method, terms):
    settings = {"rows": without_reference(method, 16), "optim": "sgd", "learning_rate": 0.1, "beta": BETA, **terms}
    settings |= {"reward_shift_update": "step"} if method == "bco" else {}
    found = []
    for size in (8, 2):
        trainer = method_trainer(
            method, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **settings
        )
        trainer.train()
        found.append(trainer)

    once, cut = found
    assert [line["loss"] for line in lines(cut)] == pytest.approx([line["loss"] for line in lines(once)], abs=1e-5)
    for one, other in zip(once.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@EACH_METHOD
def test_terms_are_in_evaluation_too_and_logged(tmp_path, method):
    terms = {"rpo_alpha": 0.7, "use_weighting": True}
    rows = without_reference(method)
    trainer = method_trainer(method, tmp_path, rows=rows, eval_dataset=rows, beta=BETA, **terms)
    trainer.train()

    found = trainer.evaluate()

    assert {"nll_loss", "on_policy_weight", "loss"} <= set(lines(trainer)[0])
    assert found["eval_nll_loss"] > 0
    assert found["eval_on_policy_weight"] > 0
    batch = PreferenceCollator(0)(trainer.train_dataset.to_list())
    if method != "bco":  # whose shift doesn't move in evaluation
        model = trainer.model.eval()
        expected = in_words(method, terms, model, tiny_llama(), batch).item()
        assert found["eval_loss"] == pytest.approx(expected, rel=1e-4)


@EACH_METHOD
def test_without_terms_a_loss_is_as_ever(tmp_path, method):
    plain, said = (
        method_trainer(method, tmp_path, **terms)
        for terms in ({}, {"rpo_alpha": None, "use_weighting": False, "humanline": False, "sync_ref_model": False})
    )
    plain.train()
    said.train()

    assert lines(said) == lines(plain)


@EACH_METHOD
def test_an_encoder_decoder_has_them_too(tmp_path, method):
    terms = {"rpo_alpha": 0.5, "use_weighting": True, "humanline": True}
    terms |= {"ld_alpha": 0.5} if method == "dpo" else {}
    rows = Dataset.from_list(METHODS[method].raw(8))
    trainer = method_trainer(method, tmp_path, model=tiny_t5(), rows=rows, max_steps=12, **terms)

    trainer.train()

    assert lines(trainer)[-1]["nll_loss"] < lines(trainer)[0]["nll_loss"]


# ---- no reference ----


def test_without_a_reference_bco_compares_likelihoods_with_their_mean(tmp_path):
    rows = encoded_rows(8)
    trainer = method_trainer("bco", tmp_path, rows=rows, reference_free=True, beta=BETA, max_steps=1,
                             per_device_train_batch_size=8)  # fmt: skip
    batch = PreferenceCollator(0)(rows.to_list())
    with torch.no_grad():
        logps, _, mask = tokens_of(tiny_llama(), batch, ("",))
    rewards = BETA * (logps * mask).sum(-1)
    logits = rewards - rewards.mean()
    expected = -logsigmoid(torch.where(batch["label"], logits, -logits)).mean()

    trainer.train()

    assert trainer.reference is None
    assert lines(trainer)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_without_a_reference_kto_compares_likelihoods_with_those_of_mismatched_rows(tmp_path):
    trainer = method_trainer("kto", tmp_path, rows=encoded_rows(8), reference_free=True, beta=BETA, max_steps=1,
                             per_device_train_batch_size=8)  # fmt: skip
    batch = PreferenceCollator(0)(trainer.train_dataset.to_list())
    with torch.no_grad():
        (logps, _, mask), (others, _, on) = (tokens_of(tiny_llama(), batch, (name,)) for name in ("", "kl_"))
    kl = (others * on).sum(-1).mean()
    gains = BETA * ((logps * mask).sum(-1) - kl)
    expected = torch.where(batch["label"], -gains, gains).sigmoid().mean()

    trainer.train()

    assert kl < 0
    assert trainer.reference is None
    assert lines(trainer)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


# ---- a reference that follows ----


def weights_of(model):
    return [weight.detach().clone() for weight in model.parameters()]


@EACH_METHOD
def test_the_reference_becomes_a_mixture_of_itself_and_the_policy(tmp_path, method):
    # After step 2 of 3 it is 1/4 of the policy as it is then, and 3/4 of the start.
    rows, settings = Dataset.from_list(METHODS[method].raw(12)), {"sync_ref_model": True, "ref_model_mixup_alpha": 0.25}
    trainer = method_trainer(method, tmp_path, rows=rows, ref_model_sync_steps=2, **settings)
    seen = Seeing()
    trainer.add_callback(seen)

    trainer.train()

    found = trainer.reference.model.parameters()
    for weight, start, after in zip(found, weights_of(tiny_llama()), seen.weights[2], strict=True):
        torch.testing.assert_close(weight, 0.75 * start + 0.25 * after)
    assert not any(weight.requires_grad for weight in trainer.reference.model.parameters())


class Seeing(TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights[state.global_step] = weights_of(model)


def test_a_policy_that_is_its_own_reference_after_each_step_has_rewards_of_zero(tmp_path):
    settings = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    trainer = method_trainer("dpo", tmp_path, rows=Dataset.from_list(raw_pairs()), **settings)

    trainer.train()

    assert [line["rewards/chosen"] for line in lines(trainer)] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_resumed_run_has_the_reference_as_it_was(tmp_path):
    def made(folder, **settings):
        terms = {"sync_ref_model": True, "ref_model_sync_steps": 1, "save_strategy": "steps", "save_steps": 2}
        return method_trainer("dpo", folder, rows=Dataset.from_list(raw_pairs()), max_steps=4, **terms, **settings)

    whole = made(tmp_path / "whole")
    whole.train()

    resumed = made(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))

    for found, expected in zip(weights_of(resumed.model), weights_of(whole.model), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(weights_of(resumed.reference.model), weights_of(whole.reference.model), strict=True):
        assert torch.equal(found, expected)
    # As a run without a moving reference would have left it.
    for name in ("reference.safetensors", "digests.json"):
        (tmp_path / "whole" / "checkpoint-2" / name).unlink()
    with pytest.raises(ValueError, match="expected the reference as it was, found none"):
        made(tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


# ---- what can't be honoured ----


LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft_config": LORA}, "a policy that is trained as a whole, for sync_ref_model"),
        ({"ref_model": tiny_mixtral()}, "weights of the policy's names and shapes for sync_ref_model"),
        ({"model_init": tiny_llama}, "expected sync_ref_model=False, found True: it mixes whole models"),
    ],
    ids=["adapter", "another model", "model_init"],
)
def test_a_reference_that_cannot_follow_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        method_trainer("dpo", tmp_path, rows=Dataset.from_list(raw_pairs()), sync_ref_model=True, **given)


@EACH_METHOD
@pytest.mark.parametrize("term", ["humanline", "sync_ref_model"])
def test_columns_of_the_reference_are_refused_where_it_has_to_be_run(tmp_path, method, term):
    with pytest.raises(ValueError, match=f"train_dataset: expected no column reference_.*with {term}: .*; remove the"):
        method_trainer(method, tmp_path, **{term: True})


def test_they_are_refused_in_an_evaluation_set_that_comes_later(tmp_path):
    trainer = method_trainer("dpo", tmp_path, rows=Dataset.from_list(raw_pairs()), ld_alpha=0.5)

    with pytest.raises(ValueError, match="eval_dataset: expected no column reference_chosen_logps with ld_alpha"):
        trainer.evaluate(encoded_pairs(4))


@EACH_METHOD
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rpo_alpha": -1.0}, "expected rpo_alpha of at least 0 or None, found -1.0"),
        ({"log_epsilon_p": 0.5, "humanline": True}, "expected log_epsilon_p below 0, found 0.5"),
        ({"log_epsilon_r": -0.5, "humanline": True}, "expected log_epsilon_r above 0, found -0.5"),
        ({"log_epsilon_r": 2.0}, "log_epsilon_r is 2.0, but humanline isn't set; set it, or leave it out"),
        ({"ref_model_mixup_alpha": 0.5}, "but sync_ref_model isn't set"),
        ({"ref_model_mixup_alpha": 1.5, "sync_ref_model": True}, "ref_model_mixup_alpha above 0 and up to 1"),
        ({"ref_model_sync_steps": 0, "sync_ref_model": True}, "ref_model_sync_steps above 0, found 0"),
        ({"humanline": True, "reference_free": True}, "expected humanline with a reference, found reference_free=True"),
        (
            {"sync_ref_model": True, "precompute_ref_log_probs": True},
            "expected precompute_ref_log_probs=False with sync_ref_model, for .* a reference that stays, found True",
        ),
        (
            {"humanline": True, "precompute_ref_log_probs": True},
            "expected precompute_ref_log_probs=False with humanline, for .* are sums over tokens",
        ),
    ],
)
def test_terms_that_contradict_each_other_are_refused(tmp_path, method, given, message):
    with pytest.raises(ValueError, match=message):
        method_config(method, tmp_path, **given)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("dpo", {"ld_alpha": 1.5}, "expected ld_alpha of at least 0 and up to 1 or None, found 1.5"),
        ("dpo", {"ld_alpha": 0.5, "loss_type": "simpo"}, "losses of log-ratios alone, found loss_type simpo"),
        ("dpo", {"humanline": True, "loss_type": ["sigmoid", "sft"]}, "in place of sft take rpo_alpha"),
        ("dpo", {"sync_ref_model": True, "loss_type": "orpo"}, "a loss that reads a reference, found loss_type orpo"),
        ("dpo", {"f_divergence_type": "forward_kl", "reference_free": True}, "with a reference to diverge from"),
        ("dpo", {"f_divergence_type": "kl"}, "f_divergence_type as one of reverse_kl"),
        ("dpo", {"f_divergence_type": "forward_kl", "loss_type": "apo_zero"}, "doesn't read the margin of a pair"),
        ("dpo", {"f_alpha_divergence_coef": 0.7}, "f_divergence_type reverse_kl doesn't read it"),
        ("dpo", {"loss_weights": [1.0, 2.0]}, "as many loss_weights"),
        ("kto", {"reference_free": True, "loss_type": "apo_zero_unpaired"}, "expected reference_free=False"),
    ],
)
def test_a_term_that_the_loss_cannot_honour_is_refused(tmp_path, method, given, message):
    with pytest.raises(ValueError, match=message):
        method_config(method, tmp_path, **given)


@EACH_METHOD
def test_terms_set_after_construction_are_heard(tmp_path, method):
    config = method_config(method, tmp_path, rpo_alpha=1.0)
    config.rpo_alpha = -1.0

    with pytest.raises(ValueError, match="expected rpo_alpha"):
        METHODS[method].trainer(tiny_llama(), args=config, train_dataset=METHODS[method].encoded())


# ---- several losses ----


def test_several_losses_train_together_and_keep_the_mean_of_rewards(tmp_path):
    # MPO; at the start rewards are 0: log 2 of each of sigmoid and of the two sides of bco_pair
    trainer = method_trainer(
        "dpo",
        tmp_path,
        rows=Dataset.from_list(raw_pairs()),
        per_device_train_batch_size=12,
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
    )
    batch = PreferenceCollator(0)(trainer.train_dataset.to_list())
    logps, _, mask = tokens_of(tiny_llama(), batch, PAIR)
    nll = (-(logps * mask).sum(-1) / mask.sum(-1))[:12].mean().item()

    trainer.train()

    assert lines(trainer)[0]["loss"] == pytest.approx(1.2 * math.log(2) + nll, rel=1e-5)
    assert trainer.method_state()["rewards"]["counts"] == [36.0, 36.0]


def test_rpo_alpha_is_the_weight_of_sft_among_several(tmp_path):
    found = []
    for settings in ({"rpo_alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}):
        trainer = method_trainer("dpo", tmp_path, rows=Dataset.from_list(raw_pairs()), **settings)
        trainer.train()
        found.append([line["loss"] for line in lines(trainer)])

    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_command_line_names_several_losses(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--loss_type", "sigmoid", "sft", "--loss_weights", "1", "0.5"]
    words += ["--f_divergence_type", "js_divergence", "--rpo_alpha", "0.5", "--sync_ref_model"]

    (config,) = HfArgumentParser(DPOConfig).parse_args_into_dataclasses(words)

    assert (config.loss_type, config.loss_weights) == (["sigmoid", "sft"], [1.0, 0.5])
    assert (config.f_divergence_type, config.rpo_alpha, config.sync_ref_model) == ("js_divergence", 0.5, True)


def test_no_warning_for_terms_that_are_read(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        method_config("dpo", tmp_path, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3, ld_alpha=0.5)

    assert not caplog.records


def test_the_page_of_a_model_names_the_terms_that_were_set(tmp_path):
    card = method_trainer("dpo", tmp_path, rows=Dataset.from_list(raw_pairs()), ld_alpha=0.5, rpo_alpha=0.7).card()

    assert "| ld_alpha | 0.5 |" in card
    assert "| rpo_alpha | 0.7 |" in card
    assert "humanline" not in card


def test_rows_of_single_thumbs_have_no_pair_terms(tmp_path):
    for method in ("bco", "kto"):
        with pytest.raises(TypeError, match="ld_alpha"):
            method_config(method, tmp_path, ld_alpha=0.5)
