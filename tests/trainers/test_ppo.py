"""PPO's trainer: steps, their parts and statistics, and the faults of the peer that it doesn't have."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel

from stages.models.frozen import AdapterOff, FrozenWeights
from stages.models.value_head import AutoModelForSeq2SeqLMWithValueHead
from stages.trainers import PPOTrainer
from stages.trainers.ppo.control import AdaptiveKLController, FixedKLController, ScoreScaler
from stages.trainers.ppo.hub import BestScore
from tests.trainers.tiny import tiny_llama, tiny_t5, tiny_tokenizer
from tests.trainers.tiny_ppo import ppo_config, rollouts, tiny_policy, tiny_trainer

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_moved(model, before, *, moved=True):
    changes = [not torch.equal(before[name], weight) for name, weight in model.named_parameters()]
    assert any(changes) is moved


def lora(**settings):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def left_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_gpt2(**settings):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **settings,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


# ---- steps ----


@pytest.mark.parametrize("penalty", ["kl", "abs", "mse", "full"])
def test_a_step_moves_the_policy_and_leaves_the_reference(penalty):
    trainer = tiny_trainer(kl_penalty=penalty)
    before, reference = weights_of(trainer.model), weights_of(trainer.ref_model)

    first, second = trainer.step(**rollouts()), trainer.step(**rollouts())

    assert_moved(trainer.model, before)
    assert_moved(trainer.ref_model, reference, moved=False)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["objective/kl"] != pytest.approx(0.0, abs=1e-3)
    assert first["objective/kl_coef"] == 0.2


def test_the_full_penalty_is_never_negative_and_the_others_are_functions_of_the_first():
    reference = tiny_llama(seed=1)
    found = {
        kind: tiny_trainer(kl_penalty=kind, ref_model=reference).step(**rollouts())["objective/kl_dist"]
        for kind in ("kl", "abs", "mse", "full")
    }

    assert (found["full"] > 0).all()
    assert (found["abs"] >= np.abs(found["kl"])).all()
    assert (found["mse"] > 0).all()


def test_statistics_have_the_documented_names_and_shapes():
    trainer = tiny_trainer()
    given = rollouts()

    stats = trainer.step(**given)

    width = max(len(q) + len(r) for q, r in zip(given["queries"], given["responses"], strict=True)) - 1
    assert stats["objective/logprobs"].shape == stats["objective/ref_logprobs"].shape == (4, width)
    assert stats["objective/kl_dist"].shape == (4,)
    assert stats["ppo/policy/ratio"].shape == stats["ppo/policy/advantages"].shape == (2 * 4 * width,)
    assert stats["tokens/queries_dist"].tolist() == [len(query) for query in given["queries"]]
    assert stats["tokens/responses_len_mean"] == np.mean([len(response) for response in given["responses"]])
    assert stats["ppo/mean_scores"] == pytest.approx(np.mean(given["scores"]), rel=1e-6)
    assert stats["ppo/std_scores"] == pytest.approx(np.std(given["scores"], ddof=1), rel=1e-6)
    assert stats["ppo/learning_rate"] == 1e-2
    explained = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    assert stats["ppo/val/var_explained"] == pytest.approx(explained, rel=1e-4)
    parts = {"forward_pass", "compute_rewards", "compute_advantages", "optimize_step", "calc_stats", "total"}
    assert {name.rpartition("/")[2] for name in stats if name.startswith("time/ppo/")} == parts
    assert all(isinstance(value, float | np.ndarray) for value in stats.values())


def test_ratios_begin_at_one_with_dropout_in_model_adapter_and_head():
    torch.manual_seed(0)
    model = tiny_policy(model=tiny_llama(dropout=0.5), peft_config=lora(lora_dropout=0.5), summary_dropout_prob=0.5)
    trainer = tiny_trainer(model=model, ppo_epochs=1, batch_size=4, mini_batch_size=4)

    ratios = trainer.step(**rollouts())["ppo/policy/ratio"]

    np.testing.assert_allclose(ratios, 1.0, atol=1e-5)


def test_accumulated_mini_batches_are_one_batch_of_responses_of_one_length():
    given = rollouts()
    given["responses"] = [torch.arange(6, 10) + row for row in range(4)]
    whole, parts = (tiny_trainer(mini_batch_size=size, gradient_accumulation_steps=4 // size) for size in (4, 1))

    whole.step(**given)
    parts.step(**given)

    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_learning_rate_schedule_moves_on_with_each_step():
    model = tiny_policy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    trainer = PPOTrainer(ppo_config(), model, None, tiny_tokenizer(), optimizer=optimizer, lr_scheduler=schedule)

    rates = [trainer.step(**rollouts())["ppo/learning_rate"] for _ in range(3)]

    assert rates == [1.0, 0.5, 0.25]


def test_early_stopping_ends_a_step_before_it_goes_too_far():
    far, near = (
        tiny_trainer(early_stopping=stops, target_kl=1e-4, ppo_epochs=6, learning_rate=5e-2) for stops in (False, True)
    )

    far.step(**rollouts())
    stats = near.step(**rollouts())

    assert near.updates.is_stopped
    assert len(stats["ppo/policy/ratio"]) < 6 * 4 * stats["objective/logprobs"].shape[1]
    start = weights_of(tiny_policy())
    gone = [
        sum((weight - start[name]).square().sum().item() for name, weight in weights_of(trainer.model).items())
        for trainer in (far, near)
    ]
    assert 0 < gone[1] < gone[0]


def test_p12_early_stopping_looks_at_all_mini_batches_before_the_weights_move():
    trainer = tiny_trainer(early_stopping=True, target_kl=1.0, gradient_accumulation_steps=2)
    trainer.updates.begin()
    before = weights_of(trainer.model)

    # 0.1 and 3.1 nats: only the mean of both is above 1.5, and only the last one of the first pair
    for kls, is_stopped in (((3.1, -0.2), False), ((0.1, 3.1), True)):
        for kl in kls:
            loss = sum(weight.sum() for weight in trainer.model.parameters())
            trainer.updates.add(loss, policy_kl=torch.tensor(kl), is_left_out=False)
        assert trainer.updates.is_stopped is is_stopped
        if not is_stopped:
            assert_moved(trainer.model, before)
            before = weights_of(trainer.model)
    assert_moved(trainer.model, before, moved=False)


def test_p1_gradients_are_clipped_in_every_step():
    trainer = tiny_trainer(max_grad_norm=1e-3, ppo_epochs=3)
    norms = []
    step = trainer.optimizer.step

    def watched_step():
        norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in trainer.model.parameters()]).item())
        step()

    trainer.updates.optimizer.step = watched_step
    trainer.step(**rollouts())

    assert len(norms) == 6
    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


def test_p2_an_overflowing_ratio_takes_no_step_and_leaves_the_momentum():
    trainer = tiny_trainer()
    trainer.step(**rollouts())
    before, moments = weights_of(trainer.model), trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    logps = torch.zeros(2, 3, requires_grad=True)

    trainer.updates.begin()
    stats = trainer.train_minibatch(
        torch.full((2, 3), -1e3), torch.zeros(2, 3), logps, torch.zeros(2, 3, 5), torch.zeros(2, 3, requires_grad=True),
        torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3),
    )  # fmt: skip

    assert stats["policy/ratio"].isinf().all()
    assert stats["loss/total"] == 0
    assert (logps.grad == 0).all()
    assert_moved(trainer.model, before, moved=False)
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_p2_a_mini_batch_that_is_left_out_leaves_the_others_their_step():
    trainer = tiny_trainer(gradient_accumulation_steps=2)
    trainer.updates.begin()
    before = weights_of(trainer.model)
    first = next(trainer.model.parameters())

    trainer.updates.add(first.sum() * 0.0, policy_kl=torch.tensor(0.0), is_left_out=True)
    trainer.updates.add(first.sum(), policy_kl=torch.tensor(0.0), is_left_out=False)

    assert_moved(trainer.model, before)


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights():
    trainer = tiny_trainer()
    trainer.updates.begin()
    before = weights_of(trainer.model)
    first = next(trainer.model.parameters())

    with pytest.raises(ValueError, match="expected a finite gradient, found norm nan"):
        trainer.updates.add(first.sum() * math.nan, policy_kl=torch.tensor(0.0), is_left_out=False)

    assert_moved(trainer.model, before, moved=False)


def test_p3_activations_are_checkpointed_while_training():
    model = tiny_policy()
    model.gradient_checkpointing_enable()
    trainer = tiny_trainer(model=model, ppo_epochs=1, mini_batch_size=4)
    plain = tiny_trainer(ppo_epochs=1, mini_batch_size=4)
    calls = []
    for layer in trainer.model.pretrained_model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    trainer.step(**rollouts())
    plain.step(**rollouts())

    # each of the two layers: once before, without gradients, then in the training pass and again in its backward
    assert calls == [False, False, True, True, True, True]
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_p6_padding_on_the_left_gives_what_padding_on_the_right_does():
    right = tiny_trainer(model=tiny_policy(model=tiny_gpt2()))
    left = tiny_trainer(model=tiny_policy(model=tiny_gpt2()), tokenizer=left_tokenizer())

    one, other = right.step(**rollouts()), left.step(**rollouts())

    for name in ("objective/entropy", "ppo/loss/policy", "ppo/loss/value", "ppo/policy/entropy", "ppo/val/error"):
        assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)
    for one, other in zip(right.model.parameters(), left.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("penalty", ["kl", "full"])
def test_p7_response_masks_mean_the_same_with_padding_on_either_side(penalty):
    given = rollouts()
    masks = [torch.ones_like(response) for response in given["responses"]]
    masks[1][1] = masks[3][0] = 0
    found = [
        tiny_trainer(tokenizer=tokenizer, kl_penalty=penalty, ref_model=tiny_llama(seed=1)).step(
            **given, response_masks=masks
        )
        for tokenizer in (tiny_tokenizer(), left_tokenizer())
    ]

    assert found[0]["objective/kl"] == pytest.approx(found[1]["objective/kl"], rel=1e-4)
    assert found[0]["ppo/loss/policy"] == pytest.approx(found[1]["ppo/loss/policy"], rel=1e-3, abs=1e-5)
    for stats in found:
        assert (stats["objective/logprobs"] != 0).sum(-1).tolist() == [int(mask.sum()) for mask in masks]


def test_what_a_masked_token_says_is_read_and_not_learned():
    given = rollouts()
    given["responses"] = [torch.tensor([7, 8, 9])] * 4
    masks = [torch.tensor([1, 0, 1])] * 4
    other = {**given, "responses": [torch.tensor([7, 20, 9])] * 4}

    one, two = (tiny_trainer(ppo_epochs=1).step(**rows, response_masks=masks) for rows in (given, other))

    first, last = np.array([2, 3, 4, 2]), np.array([4, 5, 6, 4])
    rows = np.arange(4)
    logps = [stats["objective/logprobs"] for stats in (one, two)]
    np.testing.assert_allclose(logps[0][rows, first], logps[1][rows, first], rtol=1e-5)
    assert (np.abs(logps[0][rows, last] - logps[1][rows, last]) > 1e-3).all()


# ---- what a step is given ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.ones(4, 2)}, "queries as a list of 4 tensors, found a Tensor"),
        ({"scores": [torch.tensor(1.0)] * 3}, "scores of batch_size=4 items, found 3"),
        ({"responses": [torch.ones(1, 2)] * 4}, r"responses as tensors of shape \(length,\).*found \(1, 2\) in row 0"),
        ({"queries": [torch.ones(0)] * 4}, "queries as tensors .* at least one token"),
        ({"scores": [torch.tensor(math.nan)] * 4}, "one finite number per row, found nan in row 0"),
        ({"scores": [torch.ones(2)] * 4}, "one finite number per row, found .1.0, 1.0. in row 0"),
        ({"response_masks": [torch.ones(99)] * 4}, "response_masks of .* in row 0"),
        ({"response_masks": [torch.zeros(2)] * 4}, "with a 1 for at least one token in row 0"),
    ],
)
def test_names_what_is_wrong_with_a_batch(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer().step(**{**rollouts(), **changes})


def test_p8_an_empty_response_is_named():
    given = rollouts()
    given["responses"][2] = given["responses"][2][:0]

    with pytest.raises(ValueError, match="responses .* at least one token, found .0,. in row 2; leave out rows"):
        tiny_trainer().step(**given)


def test_p8_a_batch_of_one_token_is_refused_and_one_token_a_row_is_learned_from():
    single = {"queries": [torch.tensor([7, 8])], "responses": [torch.tensor([9])], "scores": [1.0]}
    with pytest.raises(ValueError, match=r"two in all, whose advantages are compared, found \[1\]"):
        tiny_trainer(batch_size=1, mini_batch_size=1).step(**single)
    trainer = tiny_trainer(mini_batch_size=1)
    before = weights_of(trainer.model)

    stats = trainer.step(**{**rollouts(), "responses": [torch.tensor([9])] * 4})

    assert all(np.isfinite(value).all() for value in stats.values())
    assert_moved(trainer.model, before)


# ---- scores and the coefficient ----


def test_scores_are_scaled_shifted_and_clipped():
    trainer = tiny_trainer(use_score_scaling=True, use_score_norm=True, score_clip=1.0)
    given = {**rollouts(), "scores": [1.0, 2.0, 3.0, 6.0]}

    stats = trainer.step(**given)

    # mean 3, standard deviation sqrt(14 / 3) = 2.16: -0.926, -0.463, 0 and 1.389, which is clipped to 1
    scaled = [-2 / math.sqrt(14 / 3), -1 / math.sqrt(14 / 3), 0.0, 1.0]
    assert stats["ppo/mean_scores"] == pytest.approx(np.mean(scaled), rel=1e-5)
    assert stats["ppo/std_scores"] == pytest.approx(np.std(scaled, ddof=1), rel=1e-5)


def test_a_policy_whose_pass_fails_stays_in_training_mode(monkeypatch):
    trainer = tiny_trainer()
    trainer.model.train()
    monkeypatch.setattr(trainer, "_pass", lambda *_, **__: {}["missing"])

    with pytest.raises(KeyError, match="missing"):
        trainer.step(**rollouts())

    assert trainer.model.training


def test_moments_of_scores_are_those_of_all_scores_so_far():
    scaler = ScoreScaler(tiny_trainer().accelerator)
    scores = torch.randn(40) * 3 + 5

    for part in scores.split([1, 7, 32]):
        scaler.update(part)

    assert scaler.mean == pytest.approx(scores.mean().item(), rel=1e-6)
    assert scaler.std == pytest.approx(scores.std().item(), rel=1e-6)
    again = ScoreScaler(scaler.accelerator)
    again.restore(scaler.state())
    assert again.std == scaler.std


def test_scores_are_gathered_in_a_type_that_all_devices_have():
    types = []
    scaler = ScoreScaler(SimpleNamespace(device="cpu", gather=lambda scores: types.append(scores.dtype) or scores))

    scaler.update(torch.tensor([1.0, 2.0]))

    assert types == [torch.float32]
    assert scaler.mean == 1.5


@pytest.mark.parametrize("scores", [[4.0], [4.0, 4.0]])
def test_p9_scores_without_spread_stay_as_they_are(scores):
    scaler = ScoreScaler(tiny_trainer().accelerator)

    scaler.update(torch.tensor(scores))

    torch.testing.assert_close(scaler.scaled(torch.tensor(scores), shift_mean=False), torch.tensor(scores))


def test_p9_score_scaling_learns_with_a_single_response_per_step():
    trainer = tiny_trainer(batch_size=1, mini_batch_size=1, use_score_scaling=True)

    stats = trainer.step(**{name: rows[-1:] for name, rows in {**rollouts(), "scores": [2.0] * 4}.items()})

    assert stats["ppo/mean_scores"] == pytest.approx(2.0, rel=1e-5)
    assert stats["ppo/std_scores"] == 0.0


def test_an_adaptive_coefficient_follows_the_distance_by_at_most_a_fifth():
    controller = AdaptiveKLController(0.2, target=6.0, horizon=1000)

    controller.update(6.6, 100)  # 10 % above: 1 + 0.1 * 100 / 1000
    assert controller.value == pytest.approx(0.2 * 1.01)
    controller.update(600.0, 100)
    assert controller.value == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(-5.0, 100)
    assert controller.value == pytest.approx(0.2 * 1.01 * 1.02 * 0.98)


def test_the_coefficient_moves_after_a_step_unless_it_is_fixed():
    adaptive, fixed = tiny_trainer(horizon=8), tiny_trainer(adap_kl_ctrl=False)

    adaptive.step(**rollouts())
    fixed.step(**rollouts())

    # a distance of 0 is as far below the target as counts: 0.2 * (1 - 0.2 * 4 / 8)
    assert adaptive.kl_ctl.value == pytest.approx(0.18)
    assert isinstance(fixed.kl_ctl, FixedKLController)
    assert fixed.kl_ctl.value == 0.2


def test_warns_of_a_distance_that_sampling_by_the_policy_does_not_give(caplog):
    trainer = tiny_trainer(model=tiny_policy(), ref_model=tiny_llama(seed=1))
    stats = trainer.record_step_stats(
        0.2, scores=torch.ones(2), logprobs=torch.zeros(2, 3), ref_logprobs=torch.zeros(2, 3),
        non_score_reward=torch.zeros(2, 3), kls=torch.full((2, 3), -1.0), masks=torch.ones(2, 3),
        queries=[torch.ones(2)] * 2, responses=[torch.ones(3)] * 2,
        train_stats={"val/error": torch.tensor(1.0), "returns/var": torch.tensor(0.0)},
    )  # fmt: skip

    assert stats["objective/kl"] == -3.0
    assert stats["ppo/val/var_explained"] == 0.0
    assert "sample with temperature 1" in caplog.text


# ---- the parts of a step ----


def test_a_forward_pass_gives_what_the_logits_say():
    trainer = tiny_trainer(mini_batch_size=2)
    given = rollouts()
    del given["scores"]
    inputs = trainer.prepare_model_inputs(**given)

    with torch.no_grad():
        logps, logits, values, mask = trainer.batched_forward_pass(trainer.model, **given, model_inputs=inputs)
        again, found, values_again, _ = trainer.batched_forward_pass(
            trainer.model, **given, model_inputs=inputs, return_logits=True
        )

    assert logits is None
    assert found.shape == (*logps.shape, 32)
    assert mask.sum(-1).tolist() == [len(response) for response in given["responses"]]
    torch.testing.assert_close(logps, again, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, values_again, rtol=1e-5, atol=1e-5)
    expected = found.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1) * mask
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)


def test_the_loss_needs_logits_or_entropies():
    numbers = [torch.zeros(1, 2)] * 2

    with pytest.raises(ValueError, match="expected logits or entropies"):
        tiny_trainer().loss(*numbers, None, *[torch.zeros(1, 2)] * 5)


def test_an_overridden_reward_is_the_one_that_is_learned_from():
    class Doubled(PPOTrainer):
        def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
            return super().compute_rewards(2 * scores, logprobs, ref_logprobs, masks)

    trainers = [kind(ppo_config(), tiny_policy(), None, tiny_tokenizer()) for kind in (PPOTrainer, Doubled)]
    given = rollouts()
    doubled = {**given, "scores": [2 * score for score in given["scores"]]}

    one, other = trainers[0].step(**doubled), trainers[1].step(**given)

    assert one["ppo/returns/mean"] == other["ppo/returns/mean"]


# ---- references ----


def test_without_a_reference_model_an_adapter_is_switched_off():
    trainer = tiny_trainer(model=tiny_policy(peft_config=lora()))
    plain = tiny_trainer()

    for _ in range(2):
        stats = trainer.step(**rollouts())

    assert isinstance(trainer.reference, AdapterOff)
    assert trainer.config.is_peft_model is True
    expected = plain.step(**rollouts())["objective/ref_logprobs"]
    np.testing.assert_allclose(stats["objective/ref_logprobs"], expected, rtol=1e-4, atol=1e-5)
    assert stats["objective/kl"] != pytest.approx(0.0, abs=1e-3)
    learned = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert all("lora" in name or "v_head" in name for name in learned)


def test_an_adapter_that_was_trained_before_is_part_of_the_reference(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    first = tiny_policy(model=str(tmp_path / "base"), peft_config=lora())
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    first.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)

    trainer = tiny_trainer(model=type(first).from_pretrained(str(tmp_path / "adapter")))
    stats = [trainer.step(**rollouts()) for _ in range(2)]

    assert isinstance(trainer.reference, FrozenWeights)
    assert stats[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_array_equal(stats[0]["objective/ref_logprobs"], stats[1]["objective/ref_logprobs"])


def test_a_reference_needs_no_value_head():
    given = rollouts()
    with_head = tiny_trainer(ref_model=tiny_policy(seed=1)).step(**given)

    plain = tiny_trainer(ref_model=tiny_llama(seed=1)).step(**given)

    np.testing.assert_array_equal(with_head["objective/ref_logprobs"], plain["objective/ref_logprobs"])


def test_p11_shared_layers_stay_as_they_are_and_the_others_learn():
    model = tiny_policy()
    trainer = PPOTrainer(ppo_config(), model, None, tiny_tokenizer(), num_shared_layers=1)
    before = weights_of(model)

    stats = [trainer.step(**rollouts()) for _ in range(2)][-1]

    layers, reference = (each.pretrained_model.model.layers for each in (model, trainer.ref_model))
    assert layers[0].mlp.up_proj.weight.data_ptr() == reference[0].mlp.up_proj.weight.data_ptr()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}
    assert moved
    assert not any(".embed_tokens." in name or ".layers.0." in name for name in moved)
    assert stats["objective/kl"] != pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("penalty", ["kl", "full"])
def test_an_encoder_decoder_learns_every_token_of_its_answers(penalty):
    torch.manual_seed(0)
    trainer = tiny_trainer(model=AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5()), kl_penalty=penalty)
    given = rollouts()
    bare = given["responses"]
    given["responses"] = [torch.cat([torch.tensor([0]), response]) for response in bare]  # as generate gives them
    before = weights_of(trainer.model)

    stats = trainer.step(**given)

    assert (stats["objective/logprobs"] != 0).sum(-1).tolist() == [len(response) for response in bare]
    assert_moved(trainer.model, before)
    assert trainer.config.is_encoder_decoder is True
    assert trainer.step(**{**given, "responses": bare})["objective/kl"] != pytest.approx(0.0, abs=1e-4)


# ---- construction ----


def test_refuses_arguments_that_do_not_fit():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    bare = tiny_tokenizer()
    bare.pad_token = None
    schedule = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(model.parameters()))
    other = tiny_policy(model=tiny_gpt2(n_inner=8))
    other.config.vocab_size = 31

    for arguments, message in (
        ((None, model, None, tokenizer), "config as a PPOConfig, found a NoneType"),
        ((ppo_config(), tiny_llama(), None, tokenizer), "a model with a value head, found a LlamaForCausalLM"),
        ((ppo_config(), model, None, None), "a tokenizer of transformers, found a NoneType"),
        ((ppo_config(), model, None, bare), "with a pad token, found none"),
        ((ppo_config(), model, model, tokenizer), "ref_model as another model or None, found the policy"),
        ((ppo_config(), model, "model", tokenizer), "with or without a value head, found str"),
        ((ppo_config(), model, other, tokenizer), "kind and vocabulary, found 31 tokens for its 32"),
        ((ppo_config(), model, tiny_llama(), tokenizer, None, None, None, 1), "num_shared_layers only without ref_"),
        ((ppo_config(), model, None, tokenizer, None, None, None, None, schedule), "a schedule of torch for the opt"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOTrainer(*arguments)


def test_batches_of_a_dataset_keep_what_models_and_logs_read():
    rows = Dataset.from_list(
        [{"input_ids": [index, 1], "query": str(index), "other": 1, "label": 0} for index in range(10)]
    ).with_format("torch")
    kept = PPOTrainer(ppo_config(), tiny_policy(), None, tiny_tokenizer(), rows)
    whole = PPOTrainer(ppo_config(remove_unused_columns=False), tiny_policy(), None, tiny_tokenizer(), rows)

    batches = list(kept.dataloader)

    assert len(batches) == 2  # two rows are left over
    assert sorted(batches[0]) == ["input_ids", "label", "query"]
    assert batches[0]["input_ids"].shape == (4, 2)
    assert "other" in next(iter(whole.dataloader))
    again = PPOTrainer(ppo_config(), tiny_policy(), None, tiny_tokenizer(), rows)
    assert torch.equal(next(iter(again.dataloader))["input_ids"], batches[0]["input_ids"])
    with pytest.raises(ValueError, match="expected a dataset, found none here"):
        tiny_trainer().prepare_dataloader()
    with pytest.raises(ValueError, match="at least batch_size=4 rows, found 3"):
        kept.prepare_dataloader(rows.select(range(3)))


def test_a_collator_makes_the_batches_and_pads_no_rollouts():
    rows = [{"query": torch.arange(3, 4 + index)} for index in range(4)]
    trainer = PPOTrainer(
        ppo_config(), tiny_policy(), None, tiny_tokenizer(), rows, data_collator=lambda batch: {"rows": batch}
    )

    assert len(next(iter(trainer.dataloader))["rows"]) == 4
    assert isinstance(trainer.data_collator, DataCollatorForLanguageModeling)
    trainer.step(**rollouts())


# ---- trackers, hub, page ----


def test_statistics_rewards_and_texts_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny_trainer(log_with="tensorboard", project_kwargs={"project_dir": str(tmp_path)})
    stats = trainer.step(**rollouts())
    texts = {"query": ["a|b"] * 4, "response": ["c"] * 4}

    trainer.log_stats(stats, texts, [torch.tensor(score) for score in (1.0, 2.0, 3.0, 6.0)])
    trainer.accelerator.end_training()

    events = EventAccumulator(str(tmp_path / "trl"))
    events.Reload()
    scalars = {name: events.Scalars(name)[0] for name in events.Tags()["scalars"]}
    assert scalars["env/reward_mean"].value == 3.0
    assert scalars["env/reward_mean"].step == 1
    assert scalars["objective/kl_coef"].value == pytest.approx(0.2)
    assert {"env/reward_dist", "ppo/policy/ratio", "objective/kl_dist"} <= set(events.Tags()["histograms"])
    text = events.Tensors("game_log/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| query | response | reward |" in text
    assert "| a\\|b | c | 6.0 |" in text
    with pytest.raises(ValueError, match="found no response"):
        trainer.log_stats(stats, {"query": ["a"] * 4}, [1.0] * 4)


def test_nothing_is_logged_without_a_tracker():
    trainer = tiny_trainer()

    assert trainer.log_stats(trainer.step(**rollouts()), {}, [1.0] * 4) is None


def test_the_model_is_uploaded_when_its_mean_score_is_the_best_so_far():
    class Watched(PPOTrainer):
        pushed = ()

        def push_to_hub(self, repo_id, **kwargs):
            self.pushed = (*self.pushed, (self.current_step, repo_id, kwargs))

    best = {"repo_id": "someone/model", "private": True}
    trainer = Watched(ppo_config(push_to_hub_if_best_kwargs=best, ppo_epochs=1), tiny_policy(), None, tiny_tokenizer())

    for score in (1.0, 0.5, 2.0):
        trainer.step(**{**rollouts(), "scores": [score] * 4})

    assert trainer.pushed == ((1, "someone/model", {"private": True}), (3, "someone/model", {"private": True}))


def test_the_best_score_is_looked_at_every_so_many_steps():
    best = BestScore(compare_steps=2)

    assert [best.is_best(score) for score in (1.0, 9.0, 2.0, 3.0, 1.5)] == [True, False, True, False, False]


def test_what_is_uploaded_can_be_loaded_and_says_what_it_is(tmp_path):
    trainer = tiny_trainer(model_name="someone/base")
    trainer.step(**rollouts())

    trainer.save_pretrained(tmp_path)
    trainer.create_model_card(str(tmp_path), model_name="a better model")

    again = type(trainer.model).from_pretrained(str(tmp_path))
    for name, weight in weights_of(trainer.model).items():
        assert torch.equal(again.state_dict()[name], weight)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: someone/base" in card
    assert "| name | a better model |" in card
    assert "| kl_penalty | kl |" in card
    assert (tmp_path / "tokenizer.json").exists()
