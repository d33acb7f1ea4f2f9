"""TRL's own test suites on our trainers, and how their outcomes are read."""

import pytest

from tests.peers.archive import CACHE, archive
from tests.peers.reviewed import Reviewed
from tests.peers.suites import ROOT, Outcome, run_suites
from tests.peers.table import page, wrong


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_line_of_trls_own_suites_is_wrong(tmp_path):
    source = archive()
    if source is None:
        pytest.skip(f"TRL's source archive is neither in {CACHE} nor in the package index")

    outcomes = run_suites(source, tmp_path)

    print(page(outcomes))
    assert wrong(outcomes) == []
    assert (ROOT / "docs" / "peer-suites.md").read_text() == page(outcomes), "python -m tests.peers --write it"


def test_an_outcome_that_nobody_looked_at_is_wrong():
    outcomes = [
        Outcome("suite.passes", "passed", ""),
        Outcome("suite.new", "failed", "KeyError: 'x'"),
        Outcome("suite.refused", "failed", "ValueError: expected rows, found none; give some"),
        Outcome("suite.other", "failed", "TypeError: no"),
        Outcome("suite.mended", "passed", ""),
    ]
    reviewed = {
        "suite.refused": Reviewed("refused", "expected rows, found none"),
        "suite.other": Reviewed("refused", "expected rows"),
        "suite.mended": Reviewed("internals", "`_inside`"),
        "suite.gone": Reviewed("hub", "uploads"),
    }

    assert [line.partition(":")[0] for line in wrong(outcomes, reviewed)] == [
        "suite.new",
        "suite.other",
        "suite.mended",
        "suite.gone",
    ]
