"""Steps on rows that are handed over: labels, truncation, statistics, and going on from a checkpoint."""

import inspect
import json

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from stages.losses.sft import IGNORED
from stages.trainers import IterativeSFTTrainer
from stages.trainers.core.checkpoints import LOOP_CHECKPOINTS
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import tiny_llama, tiny_t5, tiny_tokenizer
from tests.trainers.tiny_iterative import batches_of, iterative_arguments, iterative_trainer

ROWS = [torch.arange(3 + i, 8 + 2 * i) for i in range(6)]
TEXTS = ["what is the sky", "blue", "a sea is green", "red fine"]


@needs_shared
@pytest.mark.parametrize("name", ["IterativeSFTTrainer", "IterativeSFTTrainer.step"])
def test_constructor_and_step_take_the_documented_arguments(name):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[name]
    function = IterativeSFTTrainer.step if name.endswith("step") else IterativeSFTTrainer

    found = [argument for argument in inspect.signature(function).parameters.values() if argument.name != "self"]

    assert [[argument.name, repr(argument.default)] for argument in found] == ledger


# ---- what a step learns ----


def test_a_step_learns_its_rows_and_says_how_it_went(tmp_path):
    trainer = iterative_trainer(tmp_path)

    first, second = trainer.step(ROWS), trainer.step(ROWS)

    assert second["loss"] < first["loss"]
    assert first["num_rows"] == 6
    assert first["num_tokens"] == sum(len(row) - 1 for row in ROWS)
    assert (first["global_step"], second["global_step"], trainer.num_calls) == (3, 6, 2)
    assert first["grad_norm"] > 0
    assert second["learning_rate"] == pytest.approx(1e-2 * 6 / 12)
    assert not trainer.model.training


def test_the_loss_is_that_of_the_model(tmp_path):
    model = tiny_llama()
    each = [cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="none") for row in ROWS]

    found = iterative_trainer(tmp_path, model=model, per_device_train_batch_size=6).step(ROWS)

    assert found["loss"] == pytest.approx(torch.cat(each).mean().item(), rel=1e-5)


def test_i1_labels_given_as_texts_are_encoded(tmp_path):
    trainer = iterative_trainer(tmp_path, per_device_train_batch_size=4)
    seen = batches_of(trainer)

    trainer.step(texts=TEXTS, texts_labels=["what is the sea", "red", "a sea is blue", "red good"])

    tokenizer = tiny_tokenizer()
    labels = sorted([token for token in row if token != IGNORED] for row in seen[0]["labels"])
    assert labels == sorted(tokenizer(["what is the sea", "red", "a sea is blue", "red good"])["input_ids"])


def test_i1_texts_are_their_own_labels_without_others(tmp_path):
    by_texts, by_ids = iterative_trainer(tmp_path), iterative_trainer(tmp_path)

    found = by_texts.step(texts=TEXTS)

    assert found == by_ids.step([torch.tensor(ids) for ids in tiny_tokenizer()(TEXTS)["input_ids"]])


def test_i2_labels_of_a_causal_model_are_honoured(tmp_path):
    model = tiny_llama()
    labels = [torch.where(torch.arange(len(row)) < 3, IGNORED, row) for row in ROWS]
    each = [cross_entropy(model(input_ids=row[None]).logits[0, 2:-1], row[3:], reduction="none") for row in ROWS]

    found = iterative_trainer(tmp_path, model=model, per_device_train_batch_size=6).step(ROWS, labels=labels)

    assert found["loss"] == pytest.approx(torch.cat(each).mean().item(), rel=1e-5)
    assert found["num_tokens"] == sum(len(row) - 3 for row in ROWS)


def test_i2_labels_may_be_other_tokens_than_the_ids(tmp_path):
    model = tiny_llama()
    labels = [row.flip(0) for row in ROWS]
    each = [
        cross_entropy(model(input_ids=row[None]).logits[0, :-1], label[1:], reduction="none")
        for row, label in zip(ROWS, labels, strict=True)
    ]

    found = iterative_trainer(tmp_path, model=model, per_device_train_batch_size=6).step(ROWS, labels=labels)

    assert found["loss"] == pytest.approx(torch.cat(each).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("mode", "part"), [("keep_end", slice(-4, None)), ("keep_start", slice(4))])
def test_i3_rows_are_cut_along_their_tokens_and_all_stay(tmp_path, mode, part):
    trainer = iterative_trainer(tmp_path, max_length=4, truncation_mode=mode, per_device_train_batch_size=6)
    seen = batches_of(trainer)

    found = trainer.step(ROWS, labels=[row.clone() for row in ROWS])

    assert found["num_rows"] == 6
    assert sorted(seen[0]["input_ids"]) == sorted(row[part].tolist() for row in ROWS)
    assert seen[0]["labels"] == seen[0]["input_ids"]


def test_tokens_that_a_mask_leaves_out_are_not_learned(tmp_path):
    trainer = iterative_trainer(tmp_path, per_device_train_batch_size=1)
    seen = batches_of(trainer)

    trainer.step([torch.tensor([5, 6, 7, 8])], attention_mask=[torch.tensor([0, 1, 0, 1])])

    # What pads a row is left out of it: its first token would else be predicted from padding.
    assert seen[0]["labels"] == [[6, IGNORED, 8]]
    assert seen[0]["attention_mask"] == [[1, 0, 1]]


def test_an_encoder_decoder_learns_answers_of_their_own_length(tmp_path):
    trainer = iterative_trainer(tmp_path, model=tiny_t5(), max_length=3)
    seen = batches_of(trainer)

    losses = [
        trainer.step(texts=TEXTS, texts_labels=["blue", "a", "fine bad good word", "no"])["loss"] for _ in range(5)
    ]

    assert losses[-1] < losses[0]
    assert {len(row) for batch in seen for row in batch["labels"]} <= {1, 3}


def test_rows_are_learned_in_an_order_that_changes_from_call_to_call(tmp_path):
    def orders(**settings):
        trainer = iterative_trainer(tmp_path, per_device_train_batch_size=6, **settings)
        seen = batches_of(trainer)
        for _ in range(2):
            trainer.step(ROWS)
        return [batch["input_ids"] for batch in seen]

    first, second = orders()
    assert first != second
    assert orders() == [first, second]
    stored = orders(train_sampling_strategy="sequential")
    assert stored[0] == stored[1] != first


# ---- beside the steps ----


def test_evaluates_and_logs_every_so_many_steps(tmp_path):
    rows = Dataset.from_list([{"input_ids": row.tolist(), "prompt_length": 2} for row in ROWS])
    trainer = iterative_trainer(tmp_path, eval_dataset=rows, eval_strategy="steps", eval_steps=2, logging_steps=2)

    first = trainer.step(ROWS)

    assert first["eval_loss"] == pytest.approx(
        next(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    )
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2]
    assert "eval_loss" not in iterative_trainer(tmp_path).step(ROWS)


def test_a_call_reads_no_lines_of_the_log_that_earlier_ones_wrote(tmp_path):
    trainer = iterative_trainer(tmp_path)
    trainer.step(ROWS)
    read = []

    class Watched(list):
        def __iter__(self):
            pytest.fail("expected the end of the log to be read, found all of it read")

        def __reversed__(self):
            return (read.append(line["step"]) or line for line in super().__reversed__())

    trainer.state.log_history = Watched(trainer.state.log_history)
    first = len(trainer.state.log_history)
    trainer.step(ROWS)

    assert len(read) == len(trainer.state.log_history) - first + 1


def test_an_evaluation_of_an_encoder_decoder_is_a_mean_over_all_tokens_of_its_answers(tmp_path):
    model = tiny_t5()
    rows = [{"input_ids": [5, 6, 7], "labels": [8, 9, 2]}, {"input_ids": [9, 10], "labels": [11]}]
    losses = [model(**{name: torch.tensor([ids]) for name, ids in row.items()}).loss.item() for row in rows]
    trainer = iterative_trainer(
        tmp_path, model=model, eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=1
    )

    found = trainer.evaluate()

    assert found["eval_loss"] == pytest.approx((3 * losses[0] + losses[1]) / 4, rel=1e-5)


def test_an_optimizer_and_a_schedule_of_ones_own_need_no_max_steps(tmp_path):
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = iterative_trainer(tmp_path, model=model, max_steps=-1, optimizers=(optimizer, schedule))

    trainer.step(ROWS)

    assert trainer.step(ROWS)["learning_rate"] == pytest.approx(0.1 / 7)


def test_noise_and_checkpointed_activations_work_as_in_one_training(tmp_path):
    plain = iterative_trainer(tmp_path).step(ROWS)
    noisy = iterative_trainer(tmp_path, neftune_noise_alpha=20.0)
    saving = iterative_trainer(tmp_path, activation_checkpointing=True, optimize_device_cache=True)

    assert noisy.step(ROWS)["loss"] != plain["loss"]
    assert not noisy.model.get_input_embeddings()._forward_hooks
    assert saving.step(ROWS)["loss"] == pytest.approx(plain["loss"], rel=1e-6)


class Watch(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, *_, **__):
        self.seen.append("begin")

    def on_step_end(self, args, state, control, **_):
        self.seen.append(state.global_step)

    def on_train_end(self, *_, **__):
        self.seen.append("end")


def test_trackers_see_one_training_from_begin_to_end(tmp_path):
    trainer = iterative_trainer(tmp_path, max_steps=6)
    watch = Watch()
    trainer.add_callback(watch)

    for _ in range(2):
        trainer.step(ROWS)
    trainer.finish()

    assert watch.seen == ["begin", 1, 2, 3, 4, 5, 6, "end"]


# ---- going on ----


def test_goes_on_bit_for_bit_behind_a_call_and_within_one(tmp_path):
    run = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2, "gradient_accumulation_steps": 2}
    calls = [ROWS, ROWS[:4], ROWS[::-1]]  # of 2, 1 and 2 steps
    whole = iterative_trainer(tmp_path, model=tiny_llama(dropout=0.2), **run)
    for rows in calls:
        whole.step(rows)

    for step, num_calls in ((1, 0), (2, 1), (3, 2), (4, 2)):
        torch.rand(7)  # a new process stands elsewhere in its random stream
        resumed = iterative_trainer(tmp_path / "other", model=tiny_llama(dropout=0.2), **run)
        resumed.resume(tmp_path / f"checkpoint-{step}")
        assert resumed.num_calls == num_calls
        for rows in calls[resumed.num_calls :]:
            resumed.step(rows)

        for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(found, expected)
        points = [[line for line in trainer.state.log_history if "loss" in line] for trainer in (resumed, whole)]
        assert points[0] == points[1]


def test_a_checkpoint_is_written_when_asked_for_and_found_again(tmp_path):
    trainer = iterative_trainer(tmp_path)
    trainer.step(ROWS)

    folder = trainer.save_checkpoint()

    assert folder == LOOP_CHECKPOINTS.last_whole(tmp_path) == tmp_path / "checkpoint-3"
    by_argument = iterative_trainer(tmp_path, resume_from_checkpoint=str(folder))
    by_argument.step(ROWS)
    trainer.step(ROWS)
    for found, expected in zip(by_argument.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_there_must_be_a_checkpoint_to_resume_and_no_call_before_it(tmp_path):
    with pytest.raises(ValueError, match="expected a whole checkpoint in .* found none"):
        iterative_trainer(tmp_path).resume()
    trainer = iterative_trainer(tmp_path)
    trainer.step(ROWS)
    trainer.save_checkpoint()

    with pytest.raises(ValueError, match="before the first call of step, found a call"):
        trainer.resume()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": None}, "args as TrainingArguments, found NoneType"),
        ({"tokenizer": None}, "a model and its tokenizer"),
        ({"truncation_mode": "middle"}, "truncation_mode as one of keep_end, keep_start, found 'middle'"),
        ({"max_length": 0}, "max_length from 1, or None, found 0"),
        ({"eval_dataset": Dataset.from_list([{"text": "x"}])}, "a column input_ids"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(tmp_path, changes, message):
    given = {
        "model": str(tmp_path / "none"),
        "args": iterative_arguments(tmp_path),
        "tokenizer": tiny_tokenizer(),
        **changes,
    }

    with pytest.raises(ValueError, match=message):
        IterativeSFTTrainer(**given)


def test_the_length_of_the_training_must_be_known_and_kept_to(tmp_path):
    with pytest.raises(ValueError, match="max_steps in args, or optimizers with a schedule, found max_steps=-1"):
        iterative_trainer(tmp_path, max_steps=-1)
    trainer = iterative_trainer(tmp_path, max_steps=4)
    trainer.step(ROWS)

    with pytest.raises(ValueError, match="up to max_steps=4 optimizer steps in all calls, found .* up to step 6"):
        trainer.step(ROWS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "found both or neither"),
        ({"input_ids": ROWS, "texts": TEXTS}, "found both or neither"),
        ({"texts": TEXTS, "labels": ROWS}, "found both or neither"),
        ({"input_ids": ROWS[0]}, "a list with a tensor of token ids per row"),
        ({"input_ids": [torch.tensor([])]}, "token ids in row 0 of input_ids"),
        ({"input_ids": [torch.tensor([0.5])]}, "token ids in row 0 of input_ids"),
        ({"input_ids": ROWS, "labels": ROWS[:2]}, "labels for each of 6 rows, found 2"),
        ({"input_ids": ROWS[:1], "attention_mask": [torch.ones(2)]}, "5 tokens in row 0 of attention_mask"),
        ({"input_ids": ROWS[:1], "labels": [torch.ones(2)]}, "5 tokens in row 0 of labels"),
        ({"texts": TEXTS[:1], "texts_labels": ["what"]}, "4 tokens in row 0 of texts_labels, .* found 1"),
        ({"texts": "what"}, "texts as a list of texts, found str"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_rows_that_cannot_be_used_are_refused(tmp_path, call, message):
    trainer = iterative_trainer(tmp_path)

    with pytest.raises(ValueError, match=message):
        trainer.step(**call)
    assert trainer.num_calls == 0


# ---- padding and ends ----


@pytest.mark.parametrize("on_left", [True, False])
def test_padding_changes_no_loss(tmp_path, on_left):
    pad = torch.zeros(3, dtype=torch.long)
    rows, masks = [], []
    for row in ROWS:
        parts = [pad, row] if on_left else [row, pad]
        rows.append(torch.cat(parts))
        masks.append(
            torch.cat([torch.zeros(3), torch.ones(len(row))] if on_left else [torch.ones(len(row)), pad]).long()
        )

    padded = iterative_trainer(tmp_path / "a").step(rows, masks, [row.clone() for row in rows])
    bare = iterative_trainer(tmp_path / "b").step(ROWS)

    assert padded["num_tokens"] == bare["num_tokens"]
    assert padded["loss"] == pytest.approx(bare["loss"], rel=1e-6)


def test_a_row_of_padding_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 0, found an attention_mask that leaves out all"):
        iterative_trainer(tmp_path).step([torch.tensor([3, 4])], [torch.tensor([0, 0])])
