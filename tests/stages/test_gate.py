"""The gate: what passes, what falls short and how it is told."""

import json

import pytest

from stages.contracts.stage import EXIT_GATE, StageFailure
from stages.gate import GateParams, run

METRICS = {
    "rows": 200,
    "accuracy": {"value": 0.7, "low": 0.64, "high": 0.76},
    "true_reward": {"policy": 0.6, "gain": {"value": 0.12, "low": -0.03, "high": 0.2}},
    "kl": {"value": 4.0, "low": 3.5, "high": 4.6},
}


def verdict_of(tmp_path, **params):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    run(metrics=tmp_path / "metrics.json", verdict=tmp_path / "verdict.json", params=GateParams(**params))
    return json.loads((tmp_path / "verdict.json").read_text())


def test_passes_where_every_bound_is_kept(tmp_path):
    verdict = verdict_of(tmp_path, minimums={"accuracy": 0.6, "true_reward/policy": 0.6}, maximums={"kl": 4.6})

    assert verdict["passed"] is True
    assert [check["compared"] for check in verdict["checks"]] == [0.64, 0.6, 4.6]


def test_a_gain_that_may_be_noise_does_not_pass(tmp_path):
    expected = r"true_reward/gain: required at least 0, found 0.12 with lower bound -0.03"

    with pytest.raises(StageFailure, match=expected) as failure:
        verdict_of(tmp_path, minimums={"true_reward/gain": 0.0})

    assert failure.value.status == EXIT_GATE
    assert not (tmp_path / "verdict.json").exists()


def test_the_estimate_itself_is_compared_where_asked(tmp_path):
    assert verdict_of(tmp_path, minimums={"true_reward/gain": 0.0}, use="value")["passed"] is True


def test_everything_that_falls_short_is_named(tmp_path):
    with pytest.raises(StageFailure, match=r"accuracy: .* lower bound 0\.64; kl: required at most 4, .* bound 4\.6"):
        verdict_of(tmp_path, minimums={"accuracy": 0.65}, maximums={"kl": 4.0})


def test_a_metric_that_was_not_measured_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="acuracy is no metric of evaluation; did you mean accuracy"):
        verdict_of(tmp_path, minimums={"acuracy": 0.5})


def test_a_gate_without_limits_decides_nothing_and_says_so(tmp_path):
    with pytest.raises(ValueError, match="expected limits in minimums or maximums, found none"):
        verdict_of(tmp_path)


@pytest.mark.parametrize("metrics", ["{}", '{"auc": {"value": null}}'])
def test_metrics_that_hold_nothing_are_told(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(metrics)

    with pytest.raises(ValueError, match="auc wasn't measured, nor was anything else"):
        run(metrics=tmp_path / "metrics.json", verdict=tmp_path / "v.json", params=GateParams(minimums={"auc": 0.5}))


@pytest.mark.parametrize(
    "found", ["NaN", '{"value": 0.7, "low": NaN, "high": NaN}', '{"value": NaN, "low": 0, "high": 1}']
)
def test_a_metric_that_is_no_number_passes_nothing(tmp_path, found):
    (tmp_path / "metrics.json").write_text(f'{{"auc": {found}}}')

    with pytest.raises(ValueError, match="expected auc as a finite number, found"):
        run(metrics=tmp_path / "metrics.json", verdict=tmp_path / "v.json", params=GateParams(minimums={"auc": 0.5}))


@pytest.mark.parametrize("limit", [float("nan"), float("-inf")])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(ValueError, match="finite number"):
        GateParams(minimums={"auc": limit})
