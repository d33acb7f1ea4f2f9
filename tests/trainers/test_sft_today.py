"""Arguments of today's SFTConfig: what is learned, how texts share rows, batches without padding."""

import pytest
from datasets import Dataset, IterableDataset

from stages.losses.sft import IGNORED
from stages.rows.label_collation import ROW_STARTS, LabelCollator
from stages.trainers import DataCollatorForCompletionOnlyLM, SFTTrainer
from stages.trainers.core.scored import OWN_SHARE
from tests.trainers.tiny import WORDS, SecondOfTwo, encoded_rows, lines, tiny_llama, tiny_tokenizer
from tests.trainers.tiny_sft import TEXTS, sft_config, sft_trainer

TURNS = [
    {"role": "user", "content": "what is"},
    {"role": "assistant", "content": "the sky"},
    {"role": "user", "content": "what of it"},
    {"role": "assistant", "content": "fine"},
]
LONG = [{"text": " ".join(WORDS[:length])} for length in (3, 11, 5, 2)]


def learned(trainer, place=0):
    """The words that a row of training learns."""
    labels = trainer.data_collator([trainer.train_dataset[place]])["labels"][0]
    return tiny_tokenizer().convert_ids_to_tokens([token for token in labels.tolist() if token != IGNORED])


def losses(trainer):
    trainer.train()
    return [line["loss"] for line in lines(trainer)]


def lengths(trainer):
    return sorted(map(len, trainer.train_dataset["input_ids"]))


# ---- assistant_only_loss ----


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"messages": TURNS}, {}, "the sky fine </s>"),
        ({"messages": TURNS}, {"completion_only_loss": False}, "the sky fine </s>"),
        ({"prompt": TURNS[:3], "completion": TURNS[3:]}, {}, "fine </s>"),
        ({"prompt": TURNS[:3], "completion": TURNS[3:]}, {"completion_only_loss": False}, "the sky fine </s>"),
        ({"messages": TURNS[1:]}, {}, "fine </s>"),
    ],
    ids=["conversation", "with prompts", "completion", "completion with prompt", "begins with an answer"],
)
def test_what_the_assistant_says_is_learned_and_nothing_else(tmp_path, row, settings, words):
    trainer = sft_trainer(tmp_path, rows=[row], assistant_only_loss=True, **settings)

    assert learned(trainer) == words.split()


def test_an_answer_in_several_turns_is_learned_from_a_stream_too(tmp_path):
    rows = [{"messages": TURNS}] * 4
    stream = IterableDataset.from_generator(lambda: iter(rows))

    found = [
        losses(sft_trainer(tmp_path, rows=given, assistant_only_loss=asked))
        for asked in (True, False)
        for given in (rows, stream)
    ]

    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    ("settings", "places"), [({}, [2]), ({"completion_only_loss": False}, [2, 4]), ({"assistant_only_loss": True}, [2])]
)
def test_masks_of_encoded_rows_say_what_is_learned(tmp_path, settings, places):
    row = {"input_ids": [7, 8, 9, 10, 11], "assistant_masks": [0, 0, 1, 0, 1], "completion_mask": [0, 0, 1, 1, 0]}

    found = [
        next(iter(sft_trainer(tmp_path, rows=rows, **settings).get_train_dataloader()))["labels"][0].tolist()
        for rows in ([row], IterableDataset.from_generator(lambda: iter([row])))
    ]

    assert [[place for place, label in enumerate(labels) if label != IGNORED] for labels in found] == [places] * 2


# ---- packing ----


def test_best_fit_keeps_texts_whole_and_cuts_those_longer_than_a_row(tmp_path, caplog):
    trainer = sft_trainer(tmp_path, rows=LONG, dataset_text_field="text", packing=True, max_length=8)
    today = sft_trainer(
        tmp_path, rows=LONG, dataset_text_field="text", args=sft_config(tmp_path, packing=True, max_length=8)
    )

    # Texts of 3, 11, 5 and 2 words, each with its EOS: 12 tokens are cut to 8; 6; and 4 with 3.
    assert lengths(today) == [6, 7, 8]
    assert "cut 1 texts to 8 tokens" in caplog.text
    # As an argument of the trainer, packing is what that documents: 25 tokens in rows of 8.
    assert lengths(trainer) == [1, 8, 8, 8]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("bfd", [6, 7, 8]), ("bfd_split", [3, 6, 8, 8]), ("wrapped", [1, 8, 8, 8])]
)
def test_a_strategy_decides_how_texts_share_rows(tmp_path, strategy, expected):
    settings = {"packing_strategy": strategy, "packing": True, "max_seq_length": 8}
    texts = sft_trainer(tmp_path, rows=LONG, dataset_text_field="text", **settings)
    encoded = sft_trainer(tmp_path, rows=LONG, dataset_text_field="text").train_dataset
    if strategy == "bfd":
        encoded = encoded.map(lambda row: {"input_ids": row["input_ids"][:8]})
    found = [texts, sft_trainer(tmp_path, rows=encoded, **settings)]

    assert [lengths(trainer) for trainer in found] == [expected] * 2
    assert all(("position_ids" in trainer.train_dataset.column_names) == (strategy != "wrapped") for trainer in found)


def test_best_fit_is_what_stands_alone(tmp_path):
    found = [
        losses(sft_trainer(tmp_path, max_seq_length=16, per_device_train_batch_size=32, **settings))
        for settings in ({}, {"args": None, "packing": True, "packing_strategy": "bfd"})
    ]

    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("packing", "eval_packing", "columns"),
    [(True, False, [True, False]), (False, True, [False, True]), (True, None, [True, True])],
)
def test_rows_of_evaluation_are_packed_by_a_word_of_their_own(tmp_path, packing, eval_packing, columns):
    settings = {"packing": packing, "eval_packing": eval_packing, "packing_strategy": "bfd"}
    rows = Dataset.from_list(TEXTS)
    trainer = sft_trainer(tmp_path, args=sft_config(tmp_path, **settings), eval_dataset=rows)

    assert ["position_ids" in rows.column_names for rows in (trainer.train_dataset, trainer.eval_dataset)] == columns
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], rel=1e-6)


# ---- padding_free ----


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (TEXTS, {}),
        (TEXTS, {"packing": True, "packing_strategy": "bfd", "max_length": 16}),
        (TEXTS, {"packing": True, "packing_strategy": "wrapped", "max_length": 8}),
        ([{"messages": TURNS}, {"messages": TURNS[:2]}] * 6, {"assistant_only_loss": True}),
    ],
    ids=["texts", "best fit", "wrapped", "conversations"],
)
def test_rows_without_padding_are_learned_as_they_are_with_it(tmp_path, rows, settings):
    found = []
    for padding_free in (False, True):
        field = {"dataset_text_field": "text"} if rows is TEXTS else {}
        args = sft_config(tmp_path, padding_free=padding_free, per_device_eval_batch_size=5, **field, **settings)
        own = Dataset.from_list(rows)
        trainer = SFTTrainer(tiny_llama(), args, train_dataset=own, eval_dataset=own, processing_class=tiny_tokenizer())
        found.append((losses(trainer), trainer.evaluate()["eval_loss"], next(iter(trainer.get_train_dataloader()))))

    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    assert found[1][2]["input_ids"].shape[0] == 1
    assert "attention_mask" not in found[1][2]


@pytest.mark.parametrize(("number", "own"), [(7, 3), (4, 0)])
def test_rows_without_padding_that_only_fill_a_batch_are_not_learned(tmp_path, number, own):
    trainer = sft_trainer(tmp_path, rows=TEXTS[:number], dataset_text_field="text", padding_free=True)
    batch = trainer.data_collator(trainer.train_dataset.select([0, 1, 2, 3]).to_list())
    before = batch["labels"].clone()
    trainer.accelerator = SecondOfTwo(trainer.accelerator)

    (ready,), found = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)

    end = [*batch[ROW_STARTS].tolist(), before.shape[1]][own]
    assert ready["labels"].tolist() == [before[0, :end].tolist() + [IGNORED] * (before.shape[1] - end)]
    assert OWN_SHARE not in ready
    assert found == (before[0, :end] != IGNORED).sum()


def test_a_row_laid_end_to_end_with_others_has_no_weight():
    with pytest.raises(ValueError, match="padding_free: expected rows without weights .* found a weight"):
        LabelCollator(0, flattens=True)([{"input_ids": [5, 6], "weight": 0.5}])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "own", "message"),
    [
        ({"packing_strategy": "best"}, {"packing": True}, "packing_strategy as one of bfd, bfd_split, wrapped"),
        ({"packing_strategy": "bfd"}, {}, "packing_strategy='bfd': expected packing=True"),
        (
            {"packing_strategy": "bfd"},
            {"packing": True, "dataset_kwargs": {"keep_documents_apart": True}},
            "one of packing_strategy and",
        ),
        ({"assistant_only_loss": True}, {}, "assistant_only_loss: expected conversations, found texts"),
        (
            {"assistant_only_loss": True},
            {"dataset_text_field": None, "rows": [{"prompt": "what", "completion": "fine"}]},
            "row 0: assistant_only_loss: expected a conversation, found plain text",
        ),
        (
            {"assistant_only_loss": True},
            {"dataset_text_field": None, "rows": [{"input_ids": [5, 6]}]},
            "assistant_only_loss: expected encoded rows that say what the assistant said, by one of assistant_masks",
        ),
        (
            {"assistant_only_loss": True, "completion_only_loss": False},
            {"dataset_text_field": None, "rows": [{"prompt": TURNS[:2], "completion": TURNS[3:]}]},
            "a prompt that ends with a question",
        ),
        ({"padding_free": True}, {"data_collator": LabelCollator(0)}, "padding_free: expected no data_collator"),
        ({"padding_free": True}, {"compute_metrics": print}, "padding_free: expected no compute_metrics"),
        (
            {"padding_free": True},
            {"dataset_text_field": None, "rows": [{"input_ids": [5, 6], "attention_mask": [0, 1]}]},
            "padding_free: .* found hidden tokens",
        ),
        (
            {"padding_free": True},
            {"dataset_text_field": None, "rows": [{"input_ids": [5, 6], "weight": 0.5}]},
            "padding_free: .* found weights",
        ),
        ({"max_length": 8}, {"max_seq_length": 9}, "expected one of max_seq_length and args.max_length, found 9 and 8"),
        ({"packing_strategy": "bfd"}, {"packing": True, "max_seq_length": 3, "rows": encoded_rows()}, "found one of 9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_can_not_be_honoured_is_refused(tmp_path, settings, own, message):
    if "rows" in own and isinstance(own["rows"], Dataset):
        own = {**own, "rows": own["rows"].remove_columns("weight"), "dataset_text_field": None}

    with pytest.raises(ValueError, match=message):
        sft_trainer(tmp_path, args=sft_config(tmp_path, **settings), **own)


def test_an_answer_is_not_found_by_a_template_and_by_turns(tmp_path):
    collator = DataCollatorForCompletionOnlyLM("<assistant>", tokenizer=tiny_tokenizer())

    with pytest.raises(ValueError, match="one of DataCollatorForCompletionOnlyLM, which finds answers by a template"):
        sft_trainer(tmp_path, rows=[{"messages": TURNS}], data_collator=collator, assistant_only_loss=True)


def test_a_model_that_lets_rows_see_each_other_is_refused_without_padding(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.trainers.sft.trainer.keeps_documents_apart", lambda _: False)

    with pytest.raises(ValueError, match="padding_free: LlamaForCausalLM lets a document see the one before it"):
        sft_trainer(tmp_path, padding_free=True)


def test_a_stream_without_padding_is_refused_in_several_processes(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"messages": TURNS}] * 12))
    trainer = sft_trainer(tmp_path, rows=stream, padding_free=True)
    trainer.accelerator = SecondOfTwo(trainer.accelerator)

    with pytest.raises(ValueError, match="padding_free: expected a datasets.Dataset in several processes"):
        trainer._check_loaded()
