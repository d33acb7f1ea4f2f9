"""Stage `gate`: fail the run if the policy falls short of what params.yaml asks of it.

A stage of its own, because DVC keeps nothing of a stage that fails: the evaluation and the report stand whether or
not the policy passes.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, FiniteFloat

from stages.contracts.files import write_json
from stages.contracts.stage import EXIT_GATE, Input, Output, Section, StageFailure, stage_main
from stages.measures.metric_rows import MetricRow, metric_rows
from stages.page.files import read_json


class GateParams(Section):
    """Section `gate.METHOD` of params.yaml."""

    minimums: dict[str, FiniteFloat] = Field(default_factory=dict)
    """What a metric must reach, by its path in the metrics of evaluation, such as `true_reward/gain: 0.0`."""
    maximums: dict[str, FiniteFloat] = Field(default_factory=dict)
    """What a metric may not pass, such as `kl: 20`."""
    use: Literal["bound", "value"] = "bound"
    """What is compared where a metric has an interval: its near end (`bound`), so that noise passes no gate, or the
    estimate itself (`value`)."""


class Check(NamedTuple):
    """One requirement and what was found."""

    metric: str
    requirement: Literal["at least", "at most"]
    limit: float
    value: float
    compared: float
    passed: bool

    def sentence(self) -> str:
        """What was asked and what was found."""
        found = f"found {self.value:.4g}"
        if self.compared != self.value:
            found += f" with {'lower' if self.requirement == 'at least' else 'upper'} bound {self.compared:.4g}"
        return f"{self.metric}: required {self.requirement} {self.limit:g}, {found}"


def run(*, metrics: Input, verdict: Output, params: GateParams) -> None:
    """Compare the metrics of evaluation with the limits and write the verdict, or fail.

    Args:
        metrics: JSON that `evaluation` wrote.
        verdict: JSON to write.
        params: the limits.

    Raises:
        ValueError: there are no limits, or a metric that is asked for wasn't measured or is no finite number.
        StageFailure: a limit isn't kept; ends with exit status 10.
    """
    checks = compare(metrics, params)
    for check in checks:
        print(f"{'passed' if check.passed else 'FAILED'}  {check.sentence()}")
    short = [check.sentence() for check in checks if not check.passed]
    if short:
        raise StageFailure(f"the policy falls short of its gate. {'; '.join(short)}", status=EXIT_GATE)
    write_json(verdict, {"passed": True, "checks": [check._asdict() for check in checks]})


def compare(metrics: Path, params: GateParams) -> list[Check]:
    """Each limit against the metric that it is for.

    Args:
        metrics: JSON that `evaluation` wrote.
        params: the limits.

    Raises:
        ValueError: there are no limits, or a metric that is asked for wasn't measured or is no finite number.
    """
    if not params.minimums and not params.maximums:
        raise ValueError(
            "expected limits in minimums or maximums, found none, which any policy keeps; name one, or take the method "
            "out of `gate` in params.yaml"
        )
    rows = metric_rows(read_json(metrics))
    found = {row.metric: row for row in rows if isinstance(row.value, int | float)}
    checks = [_check(found, name, "at least", limit, params.use) for name, limit in sorted(params.minimums.items())]
    checks += [_check(found, name, "at most", limit, params.use) for name, limit in sorted(params.maximums.items())]
    return checks


def _check(
    found: Mapping[str, MetricRow],
    name: str,
    requirement: Literal["at least", "at most"],
    limit: float,
    use: Literal["bound", "value"],
) -> Check:
    if name not in found:
        if not found:
            raise ValueError(f"gate: {name} wasn't measured, nor was anything else; rerun the evaluation")
        near = get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(found))}"
        raise ValueError(f"gate: {name} is no metric of evaluation{hint}")
    value = float(found[name].value)
    bound = found[name].low if requirement == "at least" else found[name].high
    compared = float(bound) if use == "bound" and bound is not None else value
    if not math.isfinite(value) or not math.isfinite(compared):
        raise ValueError(f"gate: expected {name} as a finite number, found {value} with bound {bound}; see evaluation")
    passed = compared >= limit if requirement == "at least" else compared <= limit
    return Check(name, requirement, limit, value, compared, passed)


if __name__ == "__main__":
    stage_main(run)
