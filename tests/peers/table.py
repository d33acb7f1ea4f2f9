"""What became of TRL's suites, held against what was reviewed, and as a page."""

from collections import Counter
from collections.abc import Sequence

from tests.peers.archive import VERSION
from tests.peers.reviewed import KINDS, REVIEWED, Reviewed
from tests.peers.suites import Outcome


def wrong(outcomes: Sequence[Outcome], reviewed: dict[str, Reviewed] = REVIEWED) -> list[str]:
    """Sentences about tests that nobody looked at, or that turned out otherwise than was written down."""
    found = []
    for test, result, message in outcomes:
        line = reviewed.get(test)
        if result == "passed":
            found += [f"{test}: passes; take it out of REVIEWED"] if line else []
        elif line is None:
            found.append(f"{test}: {result}, {message}; mend it, or say in REVIEWED why it can't pass")
        elif line.kind == "refused" and line.why not in message:
            found.append(f"{test}: expected to be refused with {line.why!r}, found {message!r}")
    ran = {outcome.test for outcome in outcomes}
    return [*found, *(f"{test}: in REVIEWED, and not in the suites" for test in reviewed if test not in ran)]


def page(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown."""
    suites: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        kind = "passed" if outcome.result == "passed" else _kind(outcome.test)
        suites.setdefault(outcome.test.partition(".")[0], Counter())[kind] += 1
    kinds = ["passed", *KINDS]
    lines = [
        f"# TRL's own test suites of {VERSION} on these trainers",
        "",
        "Made by `python -m tests.peers --write docs/peer-suites.md`; `tests/peers/test_suites.py` holds it against a",
        "run. The suites are TRL's, from its source archive, with `trl` standing for `stages.trainers`; models of the",
        "hub are tiny ones of the same kinds. A reward model has one label; gradients stay behind a step, for the",
        "suites to see; and evaluation without a dataset, which transformers 5 refuses, isn't asked for.",
        "",
        f"| suite | {' | '.join(kinds)} |",
        f"|---|{'---|' * len(kinds)}",
        *(f"| {suite} | {' | '.join(str(counts[kind]) for kind in kinds)} |" for suite, counts in suites.items()),
        f"| all | {' | '.join(str(sum(counts[kind] for counts in suites.values())) for kind in kinds)} |",
        "",
        *(f"- {kind}: {meaning}" for kind, meaning in KINDS.items()),
        "",
        "| test that doesn't pass | | why |",
        "|---|---|---|",
        *(
            f"| {outcome.test.partition('.')[2]} | {_kind(outcome.test)} | {REVIEWED[outcome.test].why} |"
            for outcome in outcomes
            if outcome.result != "passed" and outcome.test in REVIEWED
        ),
    ]
    return "\n".join(lines) + "\n"


def _kind(test: str) -> str:
    return REVIEWED[test].kind if test in REVIEWED else "wrong"
