"""Values set from the command line, in the file that DVC reads."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.overrides import apply_overrides, overridden

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(tmp_path):
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_a_value_is_set_and_comments_stay(params):
    before = params.read_text()

    apply_overrides(["training.bco.beta=0.31"], params)

    changed = [
        (old, new) for old, new in zip(before.splitlines(), params.read_text().splitlines(), strict=True) if old != new
    ]
    assert len(changed) == 1
    assert changed[0][1].strip() == "beta: 0.31"


def test_a_value_that_stands_at_its_default_can_be_set(params):
    assert "prompt_sample_size: 77" in overridden(["density_ratio.prompt_sample_size=77"], params)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.bco.betta=1", r"training.bco.betta is no parameter; did you mean beta\?"),
        ("training.bco.beta=-1", "training.bco.beta: expected"),
        ("training.bco.beta", "expected KEY=VALUE such as training.bco.beta=0.3, found 'training.bco.beta'"),
        ("=3", "expected KEY=VALUE"),
        ("training.bco.beta=[1", r"training.bco.beta=\[1: "),
    ],
)
def test_a_wrong_override_leaves_the_file_as_it_is(params, override, message):
    before = params.read_bytes()

    with pytest.raises(ValueError, match=message):
        apply_overrides(["tokenization.max_length=32", override], params)

    assert params.read_bytes() == before


def test_a_mapping_may_have_keys_in_any_language(params):
    override = "ingestion.columns={prompt: Вопрос, 'Überzeugt?': none, Note (1-5): none}"

    found = yaml.safe_load(overridden([override, "training.bco.beta=0.31"], params))

    assert found["ingestion"]["columns"] == {"prompt": "Вопрос", "Überzeugt?": "none", "Note (1-5)": "none"}
    assert found["training"]["bco"]["beta"] == 0.31


def test_a_mapping_that_is_no_yaml_is_refused(params):
    with pytest.raises(ValueError, match=r"--set ingestion.columns=\{prompt: \["):
        overridden(["ingestion.columns={prompt: [}"], params)
