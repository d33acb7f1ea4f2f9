"""params.yaml against its model, and the schema that editors read."""

import json
from pathlib import Path

import pytest

from pipelines.params import Params, check_params, load_params, schema

ROOT = Path(__file__).resolve().parents[2]


def test_params_yaml_is_valid():
    load_params(ROOT / "params.yaml")


def test_every_stage_has_a_section_of_its_own_name():
    not_stages = {"inputs", "references", "run"}
    without_choices = {"__init__", "mismatched_rows", "code"}
    stages = {path.stem for path in (ROOT / "stages").glob("*.py") if not path.stem.endswith("_training")}
    stages = {stage.removeprefix("training_") for stage in stages}
    stages -= without_choices

    assert set(Params.model_fields) - not_stages == stages


def test_every_parameter_says_what_it_means():
    undocumented = [
        f"{name}.{field}"
        for name, section in schema()["$defs"].items()
        for field, entry in section.get("properties", {}).items()
        if not entry.get("description")
    ]

    # Sections of sections are described by their own class.
    assert [
        name for name in undocumented if not name.startswith(("TrainingParams.", "GatesParams.", "RowsOfMethods."))
    ] == []


def test_the_schema_for_editors_is_up_to_date():
    committed = json.loads((ROOT / "docs" / "params.schema.json").read_text())

    assert committed == schema(), "run `python -m pipelines params --write docs/params.schema.json`"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"bco": {"betta": 0.1}}}, r"training\.bco\.betta is no parameter; did you mean beta\?"),
        (
            {"training": {"bco": {"start_from": "bco"}}},
            r"bco\.start_from: .*found bco from bco; to go on from an earlier",
        ),
        (
            {"training": {"sft": {"start_from": "dpo"}, "dpo": {"start_from": "sft"}}},
            r"found (sft from dpo from sft|dpo from sft from dpo); to go on",
        ),
        (
            {"base_model": {"quantisation": "4bit"}, "training": {"sft": {"lora": {}}}},
            r"training\.sft\.merge_lora: expected base_model.quantisation: null, found 4bit, .*merge_lora: false",
        ),
        ({"trainin": {}}, r"trainin is no parameter; did you mean training\?"),
        ({"density_ratio": {"correction": "umd"}}, r"density_ratio\.correction: expected .*'udm'.*found 'umd'"),
    ],
)
def test_a_wrong_key_is_named_by_its_whole_path(values, message):
    with pytest.raises(ValueError, match=message):
        check_params(values)


def test_a_further_training_has_the_section_of_its_method():
    found = check_params(
        {"training": {"reward_b": {"method": "reward", "learning_rate": 1e-4}}, "gate": {"reward_b": {}}}
    )

    assert type(found.training.reward_b) is type(found.training.reward)
    assert found.training.reward_b.learning_rate == 1e-4
    assert found.rows.reward_b.margin_column is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rewrd": {}}, r"training\.rewrd is no method; did you mean reward\? .*as `method: reward`"),
        ({"reward_b": {"method": "rewad"}}, r"found 'rewad'; did you mean reward\?"),
        ({"reward_b": {"method": "reward", "betta": 1}}, r"training\.reward_b\.betta is no parameter"),
    ],
    ids=["no method", "an unknown one", "an unknown key"],
)
def test_a_further_training_that_is_none_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_params({"training": values})
