"""What users and tools said inside a completion counts nowhere: artifact, batch, live and stored log-probabilities."""

import pyarrow as pa
import pytest
import torch

from stages.contracts.artifact import read_table, write_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.tokens import TOKENS
from stages.losses.sft import IGNORED
from stages.models.logprobs import completion_logps
from stages.models.row_logps import row_logps
from stages.rows.collation import PreferenceCollator
from stages.rows.label_collation import LabelCollator
from stages.rows.mismatched import Pairing, mismatched_rows
from stages.text.encoding import encode_row
from stages.text.truncation import truncate
from tests.text.tiny_tokenizers import byte_level
from tests.trainers.tiny import tiny_llama

# Two tokens of prompt; of the completion's six, the second turn of the user is at 2 and 3.
IDS, PROMPT_LENGTH, SPANS = [5, 6, 7, 8, 9, 10, 11, 12], 2, [0, 2, 4, 6]


def test_spans_of_characters_become_spans_of_whole_tokens():
    tokenizer = byte_level()
    prompt, said, asked = "<|user|>Hi</s><|assistant|>", "the world</s>", "<|user|>again</s><|assistant|>"

    row = encode_row(
        tokenizer,
        prompt=prompt,
        completion=said + asked + said,
        spans=[0, len(said), len(said + asked), len(said + asked + said)],
    )

    parts = [row.completion_ids[slice(*row.spans[at : at + 2])] for at in (0, 2)]
    assert [tokenizer.decode(part) for part in parts] == [said, said]


def test_spans_are_cut_with_their_completion():
    row = encode_row(byte_level(), prompt="the", completion=" world is a city", spans=[0, 6, 9, 16])
    length = len(row.prompt_ids) + row.spans[2] + 1

    cut = truncate(row, max_length=length)

    assert cut.spans == [*row.spans[:3], row.spans[2] + 1]


def test_batches_hold_only_what_the_assistant_said():
    row = {"input_ids": IDS, "prompt_length": PROMPT_LENGTH, "spans": SPANS}
    other = {"input_ids": IDS, "prompt_length": PROMPT_LENGTH, "spans": None}

    batch = PreferenceCollator(0)([row, other])
    labels = LabelCollator(0)([row, other])["labels"]

    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]
    assert labels.tolist() == [[*[IGNORED] * 2, 7, 8, *[IGNORED] * 2, 11, 12], [IGNORED, IGNORED, *IDS[2:]]]


def test_stored_log_probabilities_are_those_of_a_live_batch():
    model = tiny_llama().eval()
    batch = PreferenceCollator(0)([{"input_ids": IDS, "prompt_length": PROMPT_LENGTH, "spans": SPANS}])

    stored = row_logps(model, [IDS], [PROMPT_LENGTH], batch_size=2, spans=[SPANS])
    with torch.no_grad():
        live = completion_logps(model, **batch)
        whole = model(torch.tensor([IDS])).logits.log_softmax(-1)

    expected = sum(float(whole[0, place - 1, IDS[place]]) for place in (2, 3, 6, 7))
    assert stored.num_tokens.tolist() == live.num_tokens.tolist() == [4]
    assert float(stored.logps[0]) == pytest.approx(expected, rel=1e-5)
    assert float(live.logps[0]) == pytest.approx(expected, rel=1e-5)


def _tokens(spans):
    rows = [
        {
            "row_id": name,
            "prompt_id": name,
            "pair_id": None,
            "label": True,
            "weight": 1.0,
            "split": "train",
            "input_ids": ids,
            "prompt_length": 2,
            "truncated": False,
            "spans": span,
        }
        for name, ids, span in zip("ab", ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10]), spans, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*TOKENS.fields, *TOKENS.optional]))


def test_mismatched_rows_take_the_spans_of_their_partner():
    table = mismatched_rows(_tokens([[0, 1, 3, 4], None]), Pairing([0, 1], [1, 0]))

    assert table["spans"].to_pylist() == [None, [0, 1, 3, 4]]


def test_an_artifact_without_spans_has_no_column_of_them(tmp_path):
    table = _tokens([None, None]).drop_columns(["spans"])
    write_table(tmp_path / "tokens", table, TOKENS)

    assert read_table(tmp_path / "tokens", TOKENS, columns=["row_id", "spans"]).column_names == ["row_id"]
    assert COMPLETIONS.optional[0].name == "spans"
