"""Values of params.yaml in commands."""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.placeholders import with_values
from tests.workspace import ROOT, Workspace

ATTACK = "a b; touch ran $(touch ran) `touch ran` & '\"\\{item} .jsonl"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_one_word(value):
    words = shlex.split("python -m stages.x --source {inputs.log} --model models/{inputs.log}/{item}")

    found = with_values(words, value_of={"inputs.log": value}.__getitem__, stage="gate@bco")

    assert found == ["python", "-m", "stages.x", "--source", value, "--model", f"models/{value}/bco"]


@pytest.mark.parametrize(
    ("word", "stage", "found"), [("{item}", "gate", "''"), ("{item}", "", "''"), ("{a}", "", "3"), ("{b}", "", "None")]
)
def test_what_is_no_text_is_refused(word, stage, found):
    with pytest.raises(ValueError, match=rf"expected text for {re.escape(word)} in x/{re.escape(word)}, found {found}"):
        with_values([f"x/{word}"], value_of={"a": 3, "b": None}.__getitem__, stage=stage)


def test_no_command_of_the_graph_has_a_value_of_params():
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        command = stage.get("do", stage)["cmd"]
        # What these stand for is in dvc.yaml itself, if the entries of `foreach` are.
        own = [] if isinstance(stage.get("foreach"), str) else ["key", "item.method"]
        assert set(re.findall(r"\$\{(.*?)\}", command)) <= set(own), name
        assert "$" not in re.sub(r"\$\{.*?\}", "", command), name


@pytest.mark.slow
def test_the_name_of_an_input_or_a_reference_is_never_run(tmp_path):
    workspace = Workspace(tmp_path / "project", {})
    (workspace.root / ATTACK).write_text('{"prompt": "What is it?", "completion": "It is.", "label": true}\n' * 2)
    workspace.set_params({"inputs": {"feedback": ATTACK}, "references": ["base", ATTACK]})
    workspace.dvc("repro", "code")

    workspace.dvc("repro", "--single-item", "ingestion")
    workspace.dvc("repro", "--single-item", f"reference_logprobs@{ATTACK}", check=False)

    assert json.loads((workspace.root / "metrics/ingestion.json").read_text())["records"]["read"] == 2
    assert not list(workspace.root.rglob("ran"))


def test_a_shell_gives_placeholders_back():
    words = "--source {inputs.log} --model models/{training.bco.start_from}"
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", f"printf '%s ' {words}"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == words
