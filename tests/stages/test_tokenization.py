"""Stage `tokenization`: the same ids from a memo, from many processes and for any neighbours."""

import json
from collections import Counter

import pytest

from stages.contracts.artifact import ContractError, read_table, write_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import tree_digest
from stages.contracts.rejects import REJECTS
from stages.contracts.stage import EXIT_REJECTED, StageFailure
from stages.contracts.tokens import TOKENS
from stages.models.tokenizers import load_tokenizer
from stages.text.encoding import encode_rows
from stages.text.serving import read_losses
from stages.tokenization import TokenizationParams, run
from tests.stages.own_logs import normalize
from tests.text.tiny_tokenizers import byte_level, save_as_model

ANSWERS = ["a city.", "a world, a word", "world " * 20, "no"]
ROWS = [
    *({"prompt": f"what is {i}? the wor", "completion": ANSWERS[i % 4], "label": bool(i % 2)} for i in range(40)),
    {"prompt": "cut off", "completion": "a thou", "label": True, "finish_reason": "length"},
    {"prompt": "a prompt alone"},
    {"prompt": "pair", "chosen": "same start, a city", "rejected": "same start, a word"},
]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return save_as_model(byte_level(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def completions(tmp_path_factory, base_model):
    folder = tmp_path_factory.mktemp("normal")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    normalize(folder / "log.jsonl", base_model, folder, plain_text="as_is")
    return folder / "completions"


@pytest.fixture
def tokenize(tmp_path, base_model, completions):
    def to(name, *, source=completions, memo=None, **params):
        folder = tmp_path / name
        folder.mkdir()
        run(
            completions=source,
            base_model=base_model,
            tokens=folder / "tokens",
            rejects=folder / "rejects",
            metrics=folder / "metrics.json",
            memo=memo,
            params=TokenizationParams(**params),
        )
        return folder

    return to


def read(folder):
    counts = json.loads((folder / "metrics.json").read_text())
    return (
        read_table(folder / "tokens", TOKENS).to_pylist(),
        read_table(folder / "rejects", REJECTS).to_pylist(),
        counts,
    )


def test_rows_have_the_ids_of_encode_rows(tokenize, completions, base_model):
    tokens, rejects, counts = read(tokenize("out"))
    texts = {row["row_id"]: row for row in read_table(completions, COMPLETIONS).to_pylist()}
    tokenizer = load_tokenizer(base_model)

    assert len(tokens) == 43
    for row in tokens:
        text = texts[row["row_id"]]
        (encoded,) = encode_rows(
            tokenizer,
            prompts=[text["prompt"]],
            completions=[text["completion"]],
            are_complete=[text["is_complete"]],
            bos="as_served",
        )
        assert row["input_ids"] == encoded.prompt_ids + encoded.completion_ids
        assert row["prompt_length"] == len(encoded.prompt_ids)
        assert (row["input_ids"][-1] == tokenizer.eos_token_id) == text["is_complete"]
        assert (row["label"], row["split"], row["pair_id"]) == (text["label"], text["split"], text["pair_id"])
    assert (rejects, counts["prompts_only"], counts["truncated"]) == ([], 1, 0)


def test_counts_add_up_and_say_what_was_cut(tokenize):
    tokens, rejects, counts = read(tokenize("out", max_length=21, max_prompt_length=6))

    assert counts["completions"] == 43 == counts["rows_kept"] + counts["rejects"] == len(tokens) + len(rejects)
    assert counts["truncated"] == sum(row["truncated"] for row in tokens) > 0
    assert counts["num_tokens"] == sum(len(row["input_ids"]) for row in tokens)
    assert max(len(row["input_ids"]) for row in tokens) == 21
    assert counts["length"]["row"]["longest"] > 21


def test_rows_without_room_are_rejected_with_their_line(tokenize, completions, capsys):
    tokens, rejects, counts = read(tokenize("out", max_length=8, max_reject_share=1))

    assert counts["reject_reasons"] == Counter(row["reason"] for row in rejects)
    assert rejects[0]["reason"] == "no_room_for_completion"
    line = rejects[0]["line"]
    assert json.loads(rejects[0]["row"])["row_id"] == read_table(completions, COMPLETIONS)["row_id"][line - 1].as_py()
    assert f"{len(tokens):,} kept + {len(rejects):,} rejects" in capsys.readouterr().out


def test_weights_of_answers_are_cut_with_them(tmp_path, tokenize, base_model):
    answer = [{"role": "assistant", "content": "a city"}, {"role": "user", "content": "and the world"}]
    row = {"prompt": [{"role": "user", "content": "what"}], "completion": [*answer, {**answer[0], "content": "no"}]}
    (tmp_path / "log.jsonl").write_text(json.dumps({**row, "label": True}))
    normalize(tmp_path / "log.jsonl", base_model, tmp_path, turn_decay=0.5, test_share=0)

    (whole,), _, _ = read(tokenize("whole", source=tmp_path / "completions"))
    (cut,), _, _ = read(tokenize("cut", source=tmp_path / "completions", max_completion_length=4))

    assert (len(whole["spans"]), whole["span_weights"]) == (4, [0.5, 1.0])
    assert (len(cut["spans"]), cut["span_weights"]) == (2, [0.5])


def test_too_many_rejects_end_the_stage_and_name_the_setting(tokenize):
    with pytest.raises(StageFailure, match=r"30 of 43 .*max_reject_share .*no_room_for_completion \(28\)"):
        tokenize("out", max_length=8)


def test_shares_of_what_was_lost_are_in_the_metrics(tokenize):
    tokens, rejects, counts = read(tokenize("out", max_length=8, max_reject_share=1))

    assert counts["share_rejected"] == len(rejects) / 43
    assert counts["share_truncated"] == sum(row["truncated"] for row in tokens) / len(tokens)


def test_they_go_with_the_rows_to_where_a_model_is_described(tokenize):
    out = tokenize("out", max_length=8, max_reject_share=1)
    _, rejects, counts = read(out)

    expected = {name: counts[name] for name in ("completions", "truncated")} | {"rejected": len(rejects)}
    assert read_losses(out / "tokens", TOKENS) == expected
    assert read_losses(tokenize("whole") / "tokens", TOKENS) == {}


def test_rows_beyond_the_models_positions_are_refused(tokenize, base_model):
    config = json.loads((base_model / "config.json").read_text())
    (base_model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))

    with pytest.raises(ValueError, match=r"up to 12 tokens.*set tokenization.max_length: 12"):
        tokenize("out")
    (base_model / "config.json").write_text(json.dumps(config))


def test_pairs_that_differ_only_in_what_was_cut_are_rejected(tokenize):
    # "pair" is cut off behind 4 tokens of completion, which both begin with
    _, rejects, counts = read(tokenize("out", max_completion_length=2))

    assert counts["reject_reasons"] == {"identical_after_truncation": 2}
    assert {json.loads(row["row"])["prompt"] for row in rejects} == {"pair"}


def test_a_length_that_nothing_fits_is_one_sentence(tokenize):
    with pytest.raises(
        StageFailure, match=r"0 of 43 rows fit max_length=1; the longest prompt has \d+ tokens"
    ) as caught:
        tokenize("out", max_length=1)

    assert caught.value.status == EXIT_REJECTED


def test_a_missing_artifact_is_one_sentence(tokenize, tmp_path):
    with pytest.raises(ContractError, match="rerun its stage"):
        tokenize("out", source=tmp_path / "absent")


def test_prompts_alone_give_no_tokens(tokenize, tmp_path, completions):
    table = read_table(completions, COMPLETIONS)
    write_table(tmp_path / "prompts", table.filter(table["completion"].is_null()), COMPLETIONS)

    tokens, rejects, counts = read(tokenize("out", source=tmp_path / "prompts"))

    assert (tokens, rejects, counts["prompts_only"], counts["length"]) == ([], [], 1, {})


def test_the_memo_changes_no_byte(tokenize, tmp_path, completions, capsys):
    table = read_table(completions, COMPLETIONS)
    write_table(tmp_path / "half", table.slice(0, 20), COMPLETIONS)
    memo = tmp_path / "memo"

    fresh = tokenize("fresh")
    tokenize("half_way", source=tmp_path / "half", memo=memo, max_length=12)
    capsys.readouterr()
    remembered = tokenize("remembered", memo=memo)

    assert "20 rows cached or repeated, 23 to compute" in capsys.readouterr().out
    assert tree_digest(remembered) == tree_digest(fresh)


def test_the_number_of_processes_is_checked(tokenize, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_ENGINE", "processes")
    monkeypatch.setenv("PLUMBLINE_PROCESSES", "many")

    with pytest.raises(ValueError, match="PLUMBLINE_PROCESSES as a positive number"):
        tokenize("out")
