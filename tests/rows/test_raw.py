"""Rows that trainers read: raw or encoded in, encoded and labelled out."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from stages.rows.collation import PreferenceCollator
from stages.rows.raw import Lengths, RowReader
from tests.text.chat_templates import SHAPES, tokenizer_of
from tests.trainers.tiny import encoded_rows, raw_rows, tiny_tokenizer

BOS, EOS = 1, 2


def read(rows, *, lengths=None, tokenizer=None, extra=(), **settings):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    reader = RowReader(tokenizer or tiny_tokenizer(), lengths or Lengths(), **settings)
    return reader.labelled(dataset, name="train_dataset", extra_columns=extra)


def words(row):
    return tiny_tokenizer().convert_ids_to_tokens(row["input_ids"])


def test_a_plain_row_is_begin_prompt_completion_end():
    rows, left_out = read([{"prompt": "what is", "completion": " the sky", "label": True}])

    assert words(rows[0]) == ["<s>", "what", "is", "the", "sky", "</s>"]
    assert rows[0]["prompt_length"] == 3
    assert not left_out.counts


def test_a_conversation_is_rendered_by_the_chat_template():
    turn = {
        "prompt": [{"role": "user", "content": "what is"}],
        "completion": [{"role": "assistant", "content": "fine"}],
    }

    rows, _ = read([{**turn, "label": False}])

    assert words(rows[0]) == ["<s>", "<user>", "what", "is", "<assistant>", "fine", "</s>"]
    assert rows[0]["prompt_length"] == 5


def test_a_pair_becomes_its_chosen_and_its_rejected_row_one_behind_the_other():
    pair = {"prompt": "what is", "chosen": " good", "rejected": " bad"}

    rows, _ = read([pair, {**pair, "prompt": "a sea"}])

    assert rows["label"][:] == [True, False, True, False]
    assert [words(row)[-2] for row in rows] == ["good", "bad", "good", "bad"]


def test_a_pair_may_share_its_prompt_implicitly():
    rows, _ = read([{"chosen": "what is good", "rejected": "what is bad"}])

    assert [words(row) for row in rows] == [
        ["<s>", "what", "is", "good", "</s>"],
        ["<s>", "what", "is", "bad", "</s>"],
    ]
    assert rows["prompt_length"][:] == [3, 3]


@pytest.mark.parametrize("labels", [[1, 0], ["up", "down"], [True, False], [1.0, 0.0], ["yes", "no"]])
def test_labels_may_be_anything_that_reads_as_a_truth_value(labels):
    raw, _ = read([{"prompt": "a", "completion": " b", "label": label} for label in labels])
    encoded, _ = read(encoded_rows(2).remove_columns("label").add_column("label", labels))

    assert raw["label"][:] == encoded["label"][:] == [True, False]


@pytest.mark.parametrize("label", [7, "maybe", None])
def test_a_label_that_reads_as_no_truth_value_is_refused_by_row(label):
    raw = raw_rows(3)[:2]
    for row in raw:
        row["label"] = str(row["label"])
    raw[1]["label"] = None if label is None else str(label)

    with pytest.raises(ValueError, match="row 1: expected "):
        read(raw)
    with pytest.raises(ValueError, match="train_dataset: id1: expected "):
        read(encoded_rows(2).remove_columns("label").add_column("label", ["1", raw[1]["label"]]))


def test_a_completion_is_cut_only_as_far_as_its_own_prompt_demands():
    # 3 of 8 tokens are the prompt's, so 5 are left for the completion, whatever max_prompt_length is
    row = {"prompt": "what is", "completion": " a sea blue green red fine", "label": True}

    rows, _ = read([row], lengths=Lengths(max_length=8, max_prompt_length=512))

    assert words(rows[0]) == ["<s>", "what", "is", "a", "sea", "blue", "green", "red"]


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", ["sea", "blue"]), ("keep_start", ["the", "sky"])])
def test_a_prompt_that_is_too_long_keeps_the_side_asked_for_and_its_begin(mode, kept):
    row = {"prompt": "the sky a sea blue", "completion": " fine", "label": True}

    rows, _ = read([row], lengths=Lengths(max_length=6, max_prompt_length=2, truncation_mode=mode))

    assert words(rows[0]) == ["<s>", *kept, "fine", "</s>"]


def test_rows_without_room_for_a_completion_are_left_out_and_counted():
    rows, left_out = read(
        [
            {"prompt": "what is the sky", "completion": " blue", "label": True},
            {"prompt": "a", "completion": " sea", "label": True},
            {"prompt": "a", "completion": "", "label": False},
        ],
        lengths=Lengths(max_length=5),
    )

    assert len(rows) == 1
    assert left_out.counts == {"no_room_for_completion": 1, "empty_completion": 1}
    assert rows[0]["row_id"] == "row 1"


def test_a_cut_completion_gets_no_end():
    row = {"prompt": "a", "completion": " sea blue green", "label": True, "finish_reason": "length"}

    rows, _ = read([row, {**row, "finish_reason": "stop"}])

    assert [ids[-1] == EOS for ids in rows["input_ids"]] == [False, True]


def test_a_prompt_with_its_own_begin_gets_no_second_one():
    rows, _ = read([{"prompt": "<s> what", "completion": " is", "label": True}])

    assert rows[0]["input_ids"].count(BOS) == 1


def test_rows_that_are_encoded_keep_the_columns_that_the_method_reads():
    dataset = encoded_rows(3).add_column("logit_offset", [0.1, 0.2, 0.3]).add_column("other", ["x"] * 3)

    rows, _ = read(dataset, extra=("logit_offset",))

    assert set(rows.column_names) == {
        "row_id", "input_ids", "prompt_length", "label", "weight", "reference_logps", "logit_offset"
    }  # fmt: skip
    assert rows["input_ids"][:] == dataset["input_ids"][:]


def test_raw_rows_keep_the_columns_that_the_method_reads():
    own = {"reference_logps": -3.0, "logit_offset": 0.5, "other": "x"}
    single = {"prompt": "a", "completion": " b", "label": True, **own}
    empty = {**single, "completion": "", "logit_offset": 0.25}
    pair = {"prompt": "a", "chosen": " b", "rejected": " c", "logit_offset": 0.5, "reference_chosen_logps": -3.0}

    rows, _ = read([empty, single], extra=("prompt", "logit_offset"))
    of_pair, _ = read([pair], extra=("logit_offset",))

    assert set(rows.column_names) == {
        "row_id", "prompt", "input_ids", "prompt_length", "label", "weight", "reference_logps", "logit_offset"
    }  # fmt: skip
    assert (rows["logit_offset"][:], rows["reference_logps"][:]) == ([0.5], [-3.0])
    assert of_pair["logit_offset"][:] == [0.5, 0.5]
    assert not any(name.startswith("reference") for name in of_pair.column_names)  # that of the pair's two sequences


def test_raw_pairs_keep_what_is_known_of_both_sequences():
    pair = {"prompt": "a", "chosen": " b", "rejected": " c", "weight": 2.0}
    reader = RowReader(tiny_tokenizer(), Lengths())
    known = {"reference_chosen_logps": -3.0, "reference_rejected_logps": -4.0}

    rows, _ = reader.paired(Dataset.from_list([{**pair, **known}]), name="train_dataset", extra_columns=())

    assert {name: rows[0][name] for name in known} == known
    assert rows["weight"][:] == [2.0]


@pytest.mark.parametrize(("column", "value"), [("weight", -1.0), ("weight", np.nan), ("reference_logps", np.inf)])
def test_a_number_that_would_spoil_the_loss_is_refused_by_row(column, value):
    dataset = encoded_rows(3)
    values = [1.0, value, 1.0]

    with pytest.raises(ValueError, match=f"expected a finite {column} in every row.*found .* in id1"):
        read(dataset.remove_columns(column).add_column(column, values))


def test_says_what_is_missing():
    with pytest.raises(ValueError, match="expected processing_class, a tokenizer"):
        RowReader(None, Lengths()).labelled(Dataset.from_list(raw_rows()), name="train_dataset", extra_columns=())
    with pytest.raises(ValueError, match="expected a column label"):
        read(encoded_rows(2).remove_columns("label"))
    with pytest.raises(ValueError, match=r"expected rows, found none left \(2 empty_completion\)"):
        read([{"prompt": "a", "completion": "", "label": True}] * 2)
    with pytest.raises(ValueError, match="row 0: expected prompt, completion and label, or chosen and rejected"):
        read([{"prompt": "a", "completion": " b"}])


def test_two_processes_encode_what_one_does():
    rows = raw_rows(8)

    assert read(rows, num_proc=2)[0].to_list() == read(rows)[0].to_list()


def test_the_collator_pads_on_the_right_and_masks_what_is_no_completion():
    batch = PreferenceCollator(0)(
        [
            {"row_id": "a", "input_ids": [5, 6, 7], "prompt_length": 1, "label": True, "weight": 2.0},
            {"row_id": "b", "input_ids": [8, 9], "prompt_length": 1, "label": False, "weight": 1.0},
        ]
    )

    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch["label"].dtype == torch.bool
    assert batch["weight"].dtype == torch.float32
    assert batch["row_id"] == ["a", "b"]


def test_the_collator_of_an_encoder_decoder_keeps_prompt_and_completion_apart():
    batch = PreferenceCollator(0, is_encoder_decoder=True)([{"input_ids": [5, 6, 7], "prompt_length": 1}])

    assert batch["input_ids"].tolist() == [[5]]
    assert batch["decoder_input_ids"].tolist() == [[6, 7]]
    assert batch["completion_mask"].tolist() == [[1, 1]]


def _two_answers(*weights):
    turns = [{"role": "assistant", "content": word, "weight": weight} for word, weight in zip(("good", "sea"), weights)]  # noqa: B905
    completion = [turns[0], {"role": "user", "content": "what"}, *turns[1:]]
    return {"prompt": [{"role": "user", "content": "what is"}], "completion": completion, "label": True}


def test_an_answer_that_weighs_nothing_is_no_part_of_a_completions_logps():
    rows, _ = read([_two_answers(0, 1)])

    (begin, end) = rows[0]["spans"]
    assert words(rows[0])[rows[0]["prompt_length"] :][begin:end] == ["sea", "</s>"]


def test_other_weights_of_answers_are_refused_by_a_method_that_compares_completions():
    with pytest.raises(ValueError, match="row 1: expected messages that weigh 0 or 1, .*SFTTrainer"):
        read([_two_answers(1, 1), _two_answers(0.5, 1)])


def test_a_row_of_which_nothing_is_learned_is_left_out_and_counted():
    _, left_out = read([_two_answers(1, 1), _two_answers(0, 0)])

    assert left_out.counts == {"no_learned_turn": 1}


def _said(*texts, **more):
    """Turns of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": text, **more} for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("shape", "prompt", "match"),
    [
        ("two_ends", [{"role": "tool", "content": "7"}, *_said("what")], r"message 1 \(tool\): .*leaves out '7'; take"),
        ("turns_without_system", [{"role": "system", "content": "no"}, *_said("what")], "refuses .*here normalization"),
        ("inst_with_system_last", [{"role": "system", "content": "no"}, *_said("a", "b", "c")], r"message 2 .* moves"),
        ("counts_turns", _said("what"), "a server asks with a prompt that ends in .*a column chat_template_kwargs"),
    ],
)
@pytest.mark.parametrize("as_pairs", [False, True])
def test_a_conversation_that_a_template_does_not_render_whole_is_an_error_before_training(
    shape, prompt, match, as_pairs
):
    answers = [[{"role": "assistant", "content": word}] for word in ("good", "bad")]
    answered = {"chosen": answers[0], "rejected": answers[1]} if as_pairs else {"completion": answers[0], "label": True}
    reader = RowReader(tokenizer_of(SHAPES[shape]), Lengths())
    read_rows = reader.paired if as_pairs else reader.labelled

    with pytest.raises(ValueError, match=f"(?s)row 0: .*{match}"):
        read_rows(Dataset.from_list([{"prompt": prompt, **answered}]), name="train_dataset", extra_columns=())


def test_nulls_that_a_table_puts_into_calls_and_tools_are_no_part_of_them():
    calls = [{"function": {"name": "look", "arguments": arguments}} for arguments in ({"town": "Oslo"}, {"unit": "K"})]
    rows = [
        {"prompt": _said("what"), "completion": _said("", "")[1:], "label": True, "tools": [{"name": "look"}]}
        for _ in calls
    ]
    for row, call in zip(rows, calls, strict=True):
        row["completion"][0]["tool_calls"] = [call]
    tokenizer = tokenizer_of(SHAPES["tools_as_json"])

    found, _ = read(rows, tokenizer=tokenizer)

    texts = [tokenizer.decode(row["input_ids"]).replace(" ", "") for row in found]
    assert ['{"town":"Oslo"}' in text and "null" not in text for text in texts] == [True, False]
    assert not any("null" in text for text in texts)


def test_a_row_may_bring_arguments_of_the_template():
    rows = [
        {"prompt": _said("what"), "completion": _said("", "good")[1:], "label": True, "chat_template_kwargs": arguments}
        for arguments in ({"enable_thinking": False}, {"enable_thinking": True})
    ]
    tokenizer = tokenizer_of(SHAPES["switches_thinking"])

    found, _ = read(rows, tokenizer=tokenizer)

    prompts = [tokenizer.decode(row["input_ids"][: row["prompt_length"]]) for row in found]
    assert ["< / t h i n k >" in prompt for prompt in prompts] == [True, False]
