"""Stage `normalization`: counts that add up, a split that doesn't move, bytes that repeat."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages.contracts.files import tree_digest
from stages.contracts.stage import EXIT_REJECTED, StageFailure, parse_section
from stages.ingestion import IngestionParams
from stages.normalization import NormalizationParams
from tests.material import SHARED, needs_shared
from tests.stages.own_logs import normalize
from tests.text.tiny_tokenizers import byte_level, chatml, save_as_model

UP = {"prompt": "p", "completion": "c", "label": True, "topic": "t"}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return save_as_model(byte_level(), tmp_path_factory.mktemp("model"))


def write_log(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def normalized(tmp_path, base_model):
    def of(*rows, **params):
        log = write_log(tmp_path / "log.jsonl", rows)
        return normalize(log, base_model, tmp_path, **{"plain_text": "as_is", **params})

    return of


def test_unpaired_row_in_normal_form(normalized):
    (row,) = normalized({**UP, "weight": 2}).rows

    assert {name: row[name] for name in ("prompt", "completion", "label", "weight", "pair_id", "is_complete")} == {
        "prompt": "p",
        "completion": "c",
        "label": True,
        "weight": 2.0,
        "pair_id": None,
        "is_complete": True,
    }
    assert json.loads(row["messages"]) == {"prompt": "p", "completion": "c"}
    assert json.loads(row["source"]) == {"topic": "t"}


def test_a_pair_gives_two_rows_that_share_its_id(normalized):
    found = normalized({"prompt": "p", "chosen": "a", "rejected": "b"})

    assert [(row["completion"], row["label"]) for row in found.rows] == [("a", True), ("b", False)]
    assert found.rows[0]["pair_id"] == found.rows[1]["pair_id"] is not None
    assert (found.counts["rows_read"], found.counts["rows_kept"], found.counts["completions"]) == (1, 1, 2)


def test_conversations_are_templated_and_kept_as_given(normalized):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]

    rows = normalized({"messages": messages, "label": "down"}, {"messages": messages[:1]}).rows

    assert [(row["prompt"], row["completion"], row["label"]) for row in rows] == [
        ("<|user|>Hi</s><|assistant|>", "Yo</s>", False),
        ("<|user|>Hi</s><|assistant|>", None, None),
    ]
    assert json.loads(rows[0]["messages"]) == {"prompt": messages[:1], "completion": messages[1:]}
    assert rows[0]["prompt_id"] == rows[1]["prompt_id"]


def test_plain_text_can_go_through_the_template(normalized):
    (row,) = normalized(UP, plain_text="chat").rows

    assert (row["prompt"], row["completion"]) == ("<|user|>p</s><|assistant|>", "c</s>")


def test_answers_that_were_cut_off_are_marked(normalized):
    found = normalized({**UP, "finish_reason": "length"})

    assert found.rows[0]["is_complete"] is False
    assert found.counts["incomplete"] == 1


def test_duplicates_and_contradictions_are_counted(normalized):
    tie = {"prompt": "q", "completion": "c"}

    found = normalized(UP, UP, {**UP, "label": False}, {**tie, "label": 1}, {**tie, "label": 0}, {**UP, "prompt": "r"})

    assert {name: found.counts[name] for name in ("rows_read", "rows_kept", "duplicates", "rejects")} == {
        "rows_read": 6,
        "rows_kept": 2,
        "duplicates": 1,
        "rejects": 3,
    }
    assert found.counts["reject_reasons"] == {"outvoted": 1, "contradictory_labels": 2}
    assert found.counts["contradictory"] == {"decided": 1, "tied": 1}


def test_rejects_say_where_and_why_and_keep_the_row(normalized, capsys):
    found = normalized(UP, "", '{"prompt": "p"', {**UP, "prompt": "a</s>b"}, {**UP, "label": "meh"}, max_reject_share=1)

    assert [(row["file"], row["line"], row["reason"]) for row in found.rejects] == [
        ("log.jsonl", 3, "json_invalid"),
        ("log.jsonl", 4, "special_token_in_text"),
        ("log.jsonl", 5, "unknown_label"),
    ]
    assert found.rejects[0]["row"] == '{"prompt": "p"'
    assert "4 rows read = 1 kept + 0 duplicates + 3 rejects" in capsys.readouterr().out


def test_templated_logs_may_hold_control_tokens(normalized):
    (row,) = normalized({**UP, "prompt": "<|user|>Hi</s><|assistant|>"}, special_tokens="keep").rows

    assert row["prompt"] == "<|user|>Hi</s><|assistant|>"


def test_ratings_have_a_threshold(normalized):
    rows = [{**UP, "completion": str(rating), "label": rating} for rating in (1, 2, 3, 4, 5)]

    found = normalized(*rows, label_threshold=4, ignored_labels=[3])

    assert found.counts["labels"] == {"desired": 2, "undesired": 2}
    assert found.counts["reject_reasons"] == {"ignored_label": 1}


def test_zero_beside_minus_one_is_ambiguous(normalized):
    rows = [{**UP, "completion": str(vote), "label": vote} for vote in (1, 0, -1)]

    with pytest.raises(ValueError, match=r"both 0 and -1.*label_threshold: 1"):
        normalized(*rows)
    assert normalized(*rows, label_threshold=1).counts["labels"] == {"desired": 1, "undesired": 2}


def test_new_rows_move_no_old_row_between_splits(tmp_path, base_model):
    rows = [{**UP, "prompt": f"prompt {i}"} for i in range(60)]
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()

    before = normalize(write_log(tmp_path / "a.jsonl", rows[:40]), base_model, tmp_path / "first", test_share=0.3)
    after = normalize(write_log(tmp_path / "b.jsonl", rows), base_model, tmp_path / "second", test_share=0.3)

    sides = {row["row_id"]: row["split"] for row in after.rows}
    assert {row["row_id"]: row["split"] for row in before.rows}.items() <= sides.items()
    assert {"train", "test"} == set(sides.values())


def test_formats_and_folders_give_the_same_bytes(tmp_path, base_model):
    rows = [{**UP, "prompt": f"p{i}", "label": bool(i % 2)} for i in range(10)]
    write_log(tmp_path / "log.jsonl", rows)
    (tmp_path / "folder").mkdir()
    write_log(tmp_path / "folder" / "a.jsonl", rows[:4])
    pq.write_table(pa.Table.from_pylist(rows[4:]), tmp_path / "folder" / "b.parquet")

    for name, feedback in (("one", "log.jsonl"), ("two", "folder"), ("three", "log.jsonl")):
        (tmp_path / name).mkdir()
        normalize(tmp_path / feedback, base_model, tmp_path / name)

    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "three")
    assert tree_digest(tmp_path / "one" / "completions") == tree_digest(tmp_path / "two" / "completions")


def test_a_log_of_which_nothing_can_be_used_is_one_sentence(normalized):
    with pytest.raises(
        StageFailure, match=r"none of 2 rows can be used; .*unknown_layout \(2\).*log.jsonl:1: "
    ) as caught:
        normalized({"q": 1}, {"q": 2})

    assert caught.value.status == EXIT_REJECTED


def test_too_many_rejects_fail_the_stage(normalized):
    with pytest.raises(StageFailure, match=r"2 of 3 rows are rejected, more than the share of 0.5"):
        normalized(UP, {"q": 1}, {"q": 2})


def test_an_empty_log_is_one_sentence(normalized):
    with pytest.raises(ValueError, match="expected rows of feedback, found none"):
        normalized()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": {"prompt": "q", "completion": "q"}}, "under one name"),
        ({"columns": {"promt": "q"}}, "promt"),
        ({"layout": "pair"}, "layout"),
        ({"undesired_threshold": 2}, "less than label_threshold"),
    ],
)
def test_what_is_said_about_a_log_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        parse_section(IngestionParams, values, where="ingestion")


def test_a_setting_that_stood_here_before_is_looked_for_where_it_is_now():
    with pytest.raises(ValueError, match=r"normalization.columns is ingestion.columns now"):
        parse_section(NormalizationParams, {"columns": {"label": "vote"}}, where="normalization")
    with pytest.raises(ValueError, match="did you mean test_share"):
        parse_section(NormalizationParams, {"test_shar": 0.1}, where="normalization")
    assert NormalizationParams.moved.keys() <= IngestionParams.model_fields.keys()


def test_a_group_that_no_event_has_names_the_nearest(normalized):
    with pytest.raises(ValueError, match=r"group_by: no event has a column topics; did you mean topic\?"):
        normalized(UP, group_by="topics")


CELL = st.sampled_from([None, "", " ", "a", "b", "a</s>", 1, True, [], [{"role": "user", "content": "q"}]])
LOGGED = st.dictionaries(st.sampled_from(["prompt", "completion", "chosen", "rejected", "label", "messages"]), CELL)


# A label of blanks beside an answer without a question points to an answer that isn't there.
@example([{"label": " ", "completion": "a"}])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LOGGED, max_size=12))
def test_counts_add_up_whatever_the_log_holds(normalized, rows):
    # A label beside a pair stops the stage, which has a test of its own.
    rows = [{key: row[key] for key in row if key != "label" or not {"chosen", "rejected"} <= set(row)} for row in rows]
    found = normalized(UP, *rows, {**UP, "prompt": "another"}, max_reject_share=1)

    counts = found.counts
    assert counts["rows_read"] == len(rows) + 2 == counts["rows_kept"] + counts["duplicates"] + counts["rejects"]
    assert counts["rejects"] == len(found.rejects) == sum(counts["reject_reasons"].values())
    assert counts["completions"] == sum(row["completion"] is not None for row in found.rows)
    assert sum(counts["splits"].values()) == len(found.rows) == sum(counts["labels"].values())
    assert len({(row["row_id"], row["pair_id"]) for row in found.rows}) == len(found.rows)


EXPECTED = {
    "tulu1_thumbs": (2300, 1263, 906, 131),
    "tulu1_pairs": (774, 671, 65, 38),
    "oasst_thumbs": (430, 430, 0, 0),
    "politeness_pairs": (1094, 1094, 0, 0),
    "gsm8k_thumbs": (5276, 5268, 8, 0),
    "pandalm_pairs": (894, 762, 80, 52),
}


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_real_logs(tmp_path, name):
    model = save_as_model(chatml(), tmp_path / "model")

    counts = normalize(SHARED / "data/feedback" / f"{name}.jsonl", model, tmp_path).counts

    found = tuple(counts[key] for key in ("rows_read", "rows_kept", "duplicates", "rejects"))
    assert found == EXPECTED[name]


def test_all_answers_of_a_demonstrated_conversation_are_learned_with_their_weights(tmp_path, base_model):
    turns = [{"role": role, "content": f"{role} {at}"} for at in "abc" for role in ("user", "assistant")]
    turns[3]["weight"] = 0
    log = write_log(tmp_path / "log.jsonl", [{"messages": turns}])

    (row,) = normalize(log, base_model, tmp_path, learned_turns="conversation", turn_decay=0.5, test_share=0).rows

    said = [row["completion"][begin:end] for begin, end in zip(row["spans"][::2], row["spans"][1::2], strict=True)]
    assert row["prompt"] == "<|user|>user a</s><|assistant|>"
    assert said == ["assistant a</s>", "assistant c</s>"]
    assert row["span_weights"] == [0.25, 1.0]


def test_a_weight_in_a_prompt_is_said(tmp_path, base_model, capsys):
    turns = [{"role": role, "content": f"{role} {at}", "weight": 1} for at in "ab" for role in ("user", "assistant")]
    log = write_log(tmp_path / "log.jsonl", [{"messages": turns}])

    found = normalize(log, base_model, tmp_path, test_share=0)

    assert found.counts["weights_in_prompt"] == 1
    assert "in 1 rows an answer in the prompt has a weight" in capsys.readouterr().out


def test_a_template_that_is_no_jinja_stops_the_stage_and_names_its_line(tmp_path, base_model):
    log = write_log(tmp_path / "log.jsonl", [UP])

    with pytest.raises(ValueError, match=r"normalization.chat_template: line 2 of .* no Jinja: .*mend that line"):
        normalize(log, base_model, tmp_path, chat_template="{% for m in messages %}\n{{ m.content }")
