"""Trainers stay small: what two of them need stands in the core."""

import ast
from itertools import combinations

import pytest

from stages.contracts.closure import ROOT

FOLDER = ROOT / "stages" / "trainers"


def defines_a_trainer(file):
    targets = [node.targets for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign)]
    return any(getattr(target, "id", None) == "TRAINER" for names in targets for target in names)


TRAINERS = sorted(file.stem for file in FOLDER.glob("*.py") if defines_a_trainer(file))


def runs_of_six(name):
    """Each six lines on end that aren't blank, and the line that they begin at."""
    lines = [(number, line.strip()) for number, line in enumerate((FOLDER / f"{name}.py").read_text().splitlines(), 1)]
    kept = [(number, line) for number, line in lines if line]
    return {tuple(line for _, line in kept[start : start + 6]): kept[start][0] for start in range(len(kept) - 5)}


def test_the_preference_methods_together_have_under_600_lines():
    assert {"bco", "dpo", "kto"} <= set(TRAINERS)
    assert sum(len((FOLDER / f"{name}.py").read_text().splitlines()) for name in ("bco", "dpo", "kto")) < 600


@pytest.mark.parametrize(("one", "other"), list(combinations(TRAINERS, 2)))
def test_no_six_lines_on_end_stand_in_two_trainers(one, other):
    ours, theirs = runs_of_six(one), runs_of_six(other)

    shared = {f"{one}.py:{ours[run]} and {other}.py:{theirs[run]}" for run in ours.keys() & theirs.keys()}

    assert not shared
