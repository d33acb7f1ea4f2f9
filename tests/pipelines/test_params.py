"""params.yaml against its model, and the schema that editors read."""

import json
from pathlib import Path

import pytest

from pipelines.params import Params, schema
from stages.contracts.stage import parse_section, read_params

ROOT = Path(__file__).resolve().parents[2]


def test_params_yaml_is_valid():
    parse_section(Params, read_params("", ROOT / "params.yaml"), where="")


def test_every_stage_has_a_section_of_its_own_name():
    not_stages = {"inputs", "references", "run"}
    without_choices = {"__init__", "mismatched_rows"}
    stages = {path.stem for path in (ROOT / "stages").glob("*.py") if not path.stem.endswith("_training")}
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
    assert [name for name in undocumented if not name.startswith(("TrainingParams.", "GatesParams."))] == []


def test_the_schema_for_editors_is_up_to_date():
    committed = json.loads((ROOT / "docs" / "params.schema.json").read_text())

    assert committed == schema(), "run `python -m pipelines params --write docs/params.schema.json`"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"bco": {"betta": 0.1}}}, r"training\.bco\.betta is no parameter; did you mean beta\?"),
        ({"trainin": {}}, r"trainin is no parameter; did you mean training\?"),
        ({"density_ratio": {"correction": "umd"}}, r"density_ratio\.correction: expected .*'udm'.*found 'umd'"),
    ],
)
def test_a_wrong_key_is_named_by_its_whole_path(values, message):
    with pytest.raises(ValueError, match=message):
        parse_section(Params, values, where="")
