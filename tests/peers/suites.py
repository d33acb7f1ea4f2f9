"""Runs TRL's own test suites on our trainers."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from tests.peers.archive import unpack_tests
from tests.peers.stand_ins import write_hub

ROOT = Path(__file__).resolve().parents[2]
SUITES = (
    "test_ppo_trainer",
    "test_dpo_trainer",
    "test_sft_trainer",
    "test_reward_trainer",
    "test_ddpo_trainer",
    "test_iterative_sft_trainer",
    "test_modeling_value_head",
    "test_peft_models",
    "test_data_collator_completion_only",
)
# Transformers 5 knows this argument of `TrainingArguments`, which the suites call themselves, by its new name alone.
_RENAMED = (r"(\bTrainingArguments\([^()]*?)\bevaluation_strategy=", r"\1eval_strategy=")
_HUB_NAME = re.compile(r'"([\w-]+/tiny-random-[\w-]+)"')


class Outcome(NamedTuple):
    """What became of one test."""

    test: str
    """Suite, class and name, with points between."""
    result: str
    """passed, failed or skipped."""
    message: str
    """Last line of the error, or why it was skipped."""


def run_suites(source: Path, folder: Path, suites: tuple[str, ...] = SUITES) -> list[Outcome]:
    """What becomes of each test of the suites in the archive `source`, run in `folder`."""
    tests = unpack_tests(source, folder)
    texts = {path.stem: path.read_text() for path in sorted(tests.glob("test_*.py"))}
    for suite in SUITES:
        (tests / f"{suite}.py").write_text(re.sub(*_RENAMED, texts[suite]))
    cache = folder / "hub"
    names = sorted({name for suite in SUITES for name in _HUB_NAME.findall(texts[suite])})
    write_hub(cache, [texts[suite] for suite in SUITES], names)
    return [outcome for suite in suites for outcome in _run(suite, tests.parent, cache)]


def _run(suite: str, folder: Path, cache: Path) -> list[Outcome]:
    report = folder / f"{suite}.xml"
    command = [sys.executable, "-m", "pytest", f"tests/{suite}.py", "-q", "-p", "peer_plugin", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "peers" / "shim"), str(ROOT)]),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    peft_test: of adapters\n")
    done = subprocess.run(
        [*command, f"--junitxml={report}"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if not report.is_file():
        raise RuntimeError(
            f"{suite}: expected a report of pytest, found none:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return [_outcome(case) for case in ET.parse(report).iter("testcase")]  # noqa: S314 - pytest wrote it here


def _outcome(case: ET.Element) -> Outcome:
    name = f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}"
    for kind, result in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            lines = (found.get("message") or found.text or "").strip().splitlines()
            return Outcome(name, result, lines[0] if lines else "")
    return Outcome(name, "passed", "")
