"""Stage `training_rows`: the rows of each kind, and what each is made of."""

import json

import pytest
from pydantic import ValidationError

from stages.contracts.artifact import ContractError, read_manifest, read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import tree_digest
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.stage import StageFailure
from stages.contracts.training_rows import TRAINING_ROWS
from stages.rows.reading import read_rows
from stages.training_rows import RowsParams, run
from tests.stages.feedback import write_completions, write_reference_logps, write_rows, write_tokens


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Artifacts of two pairs, one of which is held out."""
    folder = tmp_path_factory.mktemp("artifacts")
    rows = [
        {"pair_id": name, "prompt_id": f"id of {name}", "label": label, "split": split}
        for name, split in (("a", "train"), ("b", "test"))
        for label in (True, False)
    ]
    log = [{**row, "prompt": row["pair_id"], "source": json.dumps({"gap": 2, "sure": "very"})} for row in rows]
    prompts = [{"prompt_id": "id of a cat", "prompt": "a cat", "split": "train"}]
    return {
        "tokens": write_tokens(folder / "tokens", rows),
        "reference_logps": write_reference_logps(folder / "logps", [0.0, -1.0, -2.0, -3.0], [1] * 4),
        "completions": write_completions(folder / "completions", log),
        "image_prompts": write_rows(folder / "image_prompts", IMAGE_PROMPTS, prompts),
    }


def made(artifacts, rows, kind, *names, **params):
    read = {name: artifacts[name] for name in names}
    run(kind=kind, **read, rows=rows, params=RowsParams(**params) if params else None)
    return read_table(rows, TRAINING_ROWS)


@pytest.mark.parametrize(
    ("kind", "names", "places"),
    [
        ("labelled", ("tokens", "reference_logps"), [0, 1, 2, 3]),
        ("pairs", ("tokens",), [0, 2]),
        ("pairs", ("tokens", "reference_logps"), [0, 2]),
        ("demonstrations", ("tokens",), [0, 2]),
        ("prompts", ("completions",), [0, 2]),
        ("image_prompts", ("image_prompts",), [0]),
    ],
)
def test_each_kind_is_written_with_its_name_and_counts(artifacts, tmp_path, kind, names, places):
    table = made(artifacts, tmp_path / "rows", kind, *names)

    meta = read_manifest(tmp_path / "rows", TRAINING_ROWS)["meta"]
    assert table["row"].to_pylist() == places
    assert meta["kind"] == kind
    assert set(meta["counts"]) == ({"train", "test"} if kind == "pairs" else {"train"})


def test_what_is_there_to_learn_from_is_said(artifacts, tmp_path, capsys):
    made(artifacts, tmp_path / "rows", "labelled", "tokens", "reference_logps")

    assert "labelled, train: 1 desired, 1 undesired, 0 without label, 2 held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("labelled", ("tokens",), "--kind labelled needs --reference-logps, found none; mend its entry in dvc.yaml"),
        ("labelled", (), "needs --reference-logps, found none; needs --tokens, found none"),
        ("pairs", ("reference_logps",), "--kind pairs needs --tokens, found none"),
        ("pairs", ("tokens", "completions"), "--kind pairs reads no --completions, found one"),
        ("demonstrations", ("tokens", "reference_logps"), "demonstrations reads no --reference-logps, found one"),
        ("prompts", ("tokens",), "--kind prompts needs --completions, found none; reads no --tokens, found one"),
        ("image_prompts", ("completions",), "--kind image_prompts needs --image-prompts, found none"),
    ],
)
def test_a_kind_says_what_it_lacks_and_what_it_does_not_read(artifacts, tmp_path, kind, names, message):
    with pytest.raises(ValueError, match=message):
        made(artifacts, tmp_path / "rows", kind, *names)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("pair", "one of labelled, .*, found 'pair'; did you mean pairs\\?"), ("x", "found 'x'$")],
)
def test_an_unknown_kind_is_named_with_the_nearest(artifacts, tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        made(artifacts, tmp_path / "rows", kind, "tokens")


def test_margins_of_the_log_stand_beside_the_pairs(artifacts, tmp_path):
    numbers = made(artifacts, tmp_path / "numbers", "pairs", "tokens", "completions", margin_column="gap")
    texts = made(
        artifacts, tmp_path / "texts", "pairs", "tokens", "completions",
        margin_column="sure", margin_values={"very": 0.5},
    )  # fmt: skip

    assert numbers["margin"].to_pylist() == [2.0, 2.0]
    assert texts["margin"].to_pylist() == [0.5, 0.5]
    found = read_rows(tmp_path / "texts", artifacts["tokens"], kind="pairs").of_split("train")
    assert found.dataset()["margin"][:] == [0.5]


def test_margins_need_the_completions(artifacts, tmp_path):
    with pytest.raises(ValueError, match="--kind pairs needs --completions, found none"):
        made(artifacts, tmp_path / "rows", "pairs", "tokens", margin_column="gap")


def test_values_of_margins_need_a_column():
    with pytest.raises(ValidationError, match="margin_values is set and margin_column isn't; name the column"):
        RowsParams(margin_values={"clear": 1.0})


def test_equal_inputs_give_equal_bytes_wherever_they_stand(artifacts, tmp_path):
    for name in ("one", "two"):
        made(artifacts, tmp_path / name, "labelled", "tokens", "reference_logps")

    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")


def test_a_kind_of_prompts_is_of_its_own_artifact(artifacts, tmp_path):
    made(artifacts, tmp_path / "rows", "prompts", "completions")

    found = read_rows(tmp_path / "rows", artifacts["completions"], COMPLETIONS, kind="prompts")
    assert found.texts()["pair_id"].to_pylist() == ["a", "b"]


def test_more_pairs_cut_apart_than_are_allowed_fail_the_stage(tmp_path):
    rows = [
        {"pair_id": name, "prompt_id": name, "label": label, "input_ids": [5, 6 + cut * label, 7], "prompt_length": 2}
        for name, cut in (("a", 0), ("b", 1), ("c", 1))
        for label in (True, False)
    ]
    tokens = write_tokens(tmp_path / "tokens", rows)

    with pytest.raises(StageFailure, match=r"2 of 3 pairs are left out.*rows\.METHOD\.max_reject_share"):
        run(kind="pairs", tokens=tokens, rows=tmp_path / "dpo")
    assert made({"tokens": tokens}, tmp_path / "let", "pairs", "tokens", max_reject_share=0.7).num_rows == 1


@pytest.fixture
def origins(tmp_path):
    """Four labelled rows and a pair, whose answers two models gave, and a demonstration without a model."""
    rows = [{"label": index % 2 == 0} for index in range(4)]
    rows += [{"pair_id": "a", "prompt_id": "p", "label": True}, {"pair_id": "a", "prompt_id": "p", "label": False}]
    rows += [{"label": None}]
    models = ["v1", "v2", "v1", "v2", "v1", "v1", None]
    log = [
        {**row, "prompt": "p", "source": json.dumps({"model": model, "loser": "v2"})}
        for row, model in zip(rows, models, strict=True)
    ]
    numbers = [1] * len(rows)
    return {
        "tokens": write_tokens(tmp_path / "tokens", rows),
        "reference_logps": write_reference_logps(tmp_path / "base", [-10.0 - row for row in range(7)], numbers),
        "origin_reference_logps": (
            write_reference_logps(tmp_path / "sft", [-20.0 - row for row in range(7)], numbers),
        ),
        "completions": write_completions(tmp_path / "completions", log),
    }


NAMES = {"v1": "base", "v2": "sft"}
ORIGINS = ("tokens", "reference_logps", "origin_reference_logps", "completions")


def test_each_row_has_the_log_probability_of_the_model_that_answered(origins, tmp_path):
    table = made(origins, tmp_path / "rows", "labelled", *ORIGINS, origin_column="model", origin_references=NAMES)

    assert table["reference_logps"].to_pylist() == [-10.0, -21.0, -12.0, -23.0, -14.0, -15.0]
    found = read_rows(tmp_path / "rows", origins["tokens"], kind="labelled")
    assert found.origins == found.of_split("train").origins == ("sft",)


@pytest.mark.parametrize(("rejected", "expected"), [(None, -15.0), ("loser", -25.0)])
def test_the_two_answers_of_a_pair_may_have_models_of_their_own(origins, tmp_path, rejected, expected):
    table = made(
        origins, tmp_path / "rows", "pairs", *ORIGINS,
        origin_column="model", rejected_origin_column=rejected, origin_references=NAMES,
    )  # fmt: skip

    assert table["reference_logps"].to_pylist()[0] == -14.0
    assert table["partner_reference_logps"].to_pylist()[0] == expected


@pytest.mark.parametrize("names", [None, {"v1": "base"}, {"v1": "base", "v2": "ppo"}])
def test_an_answer_of_a_model_without_reference_is_refused_by_row(origins, tmp_path, names):
    with pytest.raises(ValueError, match="an answer of one of base, sft, found 'v[12]' in the column 'model' of row"):
        made(origins, tmp_path / "rows", "labelled", *ORIGINS, origin_column="model", origin_references=names)


def test_an_answer_without_a_model_is_refused(origins, tmp_path):
    with pytest.raises(
        ValueError, match="expected an answer of one of base, sft, found None in the column 'mode' of row"
    ):
        made(origins, tmp_path / "rows", "labelled", *ORIGINS, origin_column="mode", origin_references=NAMES)


def test_a_reference_of_other_rows_is_refused(origins, tmp_path):
    short = write_reference_logps(tmp_path / "short" / "sft", [0.0], [1])
    read = {**origins, "origin_reference_logps": (short,)}

    with pytest.raises(ContractError, match="expected the rows of tokens in their order"):
        made(read, tmp_path / "rows", "labelled", *ORIGINS, origin_column="model", origin_references=NAMES)


def test_kto_takes_one_reference(origins, tmp_path):
    read = {**origins, "mismatched_reference_logps": origins["reference_logps"]}

    with pytest.raises(ValueError, match="KTO compares rewards with the divergence from one reference"):
        made(read, tmp_path / "rows", "labelled", *read, origin_column="model", origin_references=NAMES)


@pytest.mark.parametrize(
    ("without", "params", "message"),
    [
        ("completions", {"origin_column": "model"}, "needs --completions, found none"),
        ("origin_reference_logps", {"origin_column": "model"}, "found no --origin-reference-logps and origin_column m"),
        ("reference_logps", {"origin_column": "model"}, "expected origin_column with --reference-logps and"),
        ("", {"max_reject_share": 0.1}, "found --origin-reference-logps and origin_column None; they go together"),
        ("", {"margin_column": "gap"}, "margin_column is of pairs, and --kind is labelled; leave it out"),
    ],
)
def test_what_origins_need_is_asked_for(origins, tmp_path, without, params, message):
    names = [name for name in ORIGINS if name != without]

    with pytest.raises(ValueError, match=message):
        made(origins, tmp_path / "rows", "labelled", *names, **params)


def test_names_of_origins_need_a_column():
    with pytest.raises(ValidationError, match="or origin_references is set and origin_column isn't; name the column"):
        RowsParams(origin_references={"v1": "base"})


@pytest.mark.parametrize("kind", ["labelled", "pairs", "demonstrations"])
def test_weights_of_answers_are_learned_by_sft_and_refused_by_methods_that_compare_completions(tmp_path, kind):
    rows = [{"pair_id": "a", "prompt_id": "p", "label": label, "span_weights": [0.5]} for label in (True, False)]
    names = ("tokens",) if kind != "labelled" else ("tokens", "reference_logps")
    given = {
        "tokens": write_tokens(tmp_path / "tokens", rows),
        "reference_logps": write_reference_logps(tmp_path / "logps", [0.0, -1.0], [1] * 2),
    }
    if kind == "demonstrations":
        made(given, tmp_path / "rows", kind, *names)
        dataset = read_rows(tmp_path / "rows", given["tokens"], kind=kind).dataset()
        assert dataset["span_weights"][:] == [[0.5]]
    else:
        with pytest.raises(ValueError, match=r"weigh 0 or 1 .* found \[0.5\] in row0 .*turn_decay: 1"):
            made(given, tmp_path / "rows", kind, *names)
