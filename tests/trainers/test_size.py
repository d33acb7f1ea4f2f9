"""Trainers stay small: what two of them need stands in the core."""

import ast
import re
from itertools import combinations

from stages.contracts.closure import ROOT

FOLDER = ROOT / "stages" / "trainers"


def defines_a_trainer(file):
    classes = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    return any(name.endswith("Trainer") for name in classes) and file.stem not in {"base", "preference", "token_loss"}


TRAINERS = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.py") if defines_a_trainer(file))


def signature_lines(text):
    """Numbers of the lines of signatures, which documents fix."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return {line for node in functions for line in range(node.lineno, node.body[0].lineno)}


def runs_of_six(name):
    """Each six lines on end that say something of their own, and the line that they begin at.

    Blank ones, signatures and arguments that are handed on under their own name don't.
    """
    text = (FOLDER / name).read_text()
    fixed = signature_lines(text)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in fixed]
    kept = [(number, line) for number, line in lines if line and not re.fullmatch(r"(\w+)=\1,", line)]
    return {tuple(line for _, line in kept[start : start + 6]): kept[start][0] for start in range(len(kept) - 5)}


def test_the_preference_methods_together_have_under_600_lines():
    methods = {f"{name}/trainer.py" for name in ("bco", "dpo", "kto")}

    assert methods <= set(TRAINERS)
    assert sum(len((FOLDER / name).read_text().splitlines()) for name in methods) < 600


def test_no_six_lines_on_end_stand_in_two_trainers():
    runs = {name: runs_of_six(name) for name in TRAINERS}

    shared = {
        f"{one}:{runs[one][run]} and {other}:{runs[other][run]}"
        for one, other in combinations(TRAINERS, 2)
        for run in runs[one].keys() & runs[other].keys()
    }

    assert not shared
