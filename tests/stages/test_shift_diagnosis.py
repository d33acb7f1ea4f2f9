"""Stage `shift_diagnosis`: the cause of a shift in worlds in which it is known."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from stages.contracts.artifact import ContractError
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.shift_diagnosis import ShiftDiagnosisParams, run
from tests.stages.feedback import write_completions, write_reference_logps, write_rows, write_tokens

RATES = np.linspace(0.1, 0.9, 8)


def world(*, is_competence, seed=0, count=1600):
    """Rows of eight topics with up-rates from 0.1 to 0.9, whose answers are as likely as the cause says."""
    random = np.random.default_rng(seed)
    topics = random.integers(0, 8, size=count)
    labels = random.random(count) < RATES[topics]
    confidence = RATES if is_competence else random.permutation(np.tile([0.4, 0.6], 4)) + random.normal(size=8) * 0.02
    num_tokens = random.integers(2, 30, size=count)
    per_token = np.log(confidence[topics]) + random.normal(size=count) * 0.2
    return {
        "topics": [f"topic {topic}" for topic in topics],
        "labels": labels.tolist(),
        "num_tokens": num_tokens.tolist(),
        "logps": (per_token * num_tokens).tolist(),
    }


def diagnose(folder, rows, *, topics=True, auc=0.8, correction="udm", splits=None, **params):
    count = len(rows["labels"])
    prompts = [f"prompt{index % (count // 2)}" for index in range(count)]
    sources = [json.dumps({"topic": topic} if topics else {"other": 1}) for topic in rows["topics"]]
    splits = splits or ["train"] * count
    tokens = [
        {"prompt_id": prompt, "label": label, "split": split}
        for prompt, label, split in zip(prompts, rows["labels"], splits, strict=True)
    ]
    rates = dict(zip(prompts, (RATES[int(topic[-1])] for topic in rows["topics"]), strict=True))
    ratios = [
        {
            "prompt_id": prompt,
            "desirable_probability": rate,
            "density_ratio": 1.0,
            "desired_weight": 1.0,
            "undesired_weight": 1.0,
            "logit_offset": 0.0,
        }
        for prompt, rate in rates.items()
    ]
    metrics = {
        "auc": {"value": auc, "low": auc - 0.02, "high": auc + 0.02},
        "effective_sample_share": {"udm": 1.0, "udm_before_clamping": 0.5},
        "clamped_share": {"low": 0.25, "high": 0.0},
        "correction": correction,
    }
    (folder / "density.json").write_text(json.dumps(metrics))
    run(
        completions=write_completions(
            folder / "completions", [{"prompt": p, "source": s} for p, s in zip(prompts, sources, strict=True)]
        ),
        tokens=write_tokens(folder / "tokens", tokens),
        density_ratios=write_rows(folder / "ratios", DENSITY_RATIOS, ratios),
        density_metrics=folder / "density.json",
        reference_logps=write_reference_logps(folder / "logps", rows["logps"], rows["num_tokens"]),
        metrics=folder / "metrics.json",
        params=ShiftDiagnosisParams(num_resamples=100, **params),
    )
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("is_competence", "verdict", "at_least"),
    # Eight topics whose answers are likely or not for no reason have a rank correlation above 0.6 in one of 16 worlds.
    [(True, "competence", 20), (False, "rater_bias", 16)],
)
def test_the_cause_is_found_or_left_open_and_never_the_wrong_one(tmp_path, is_competence, verdict, at_least):
    worlds = (world(is_competence=is_competence, seed=seed, count=800) for seed in range(20))

    found = [diagnose(tmp_path, rows)["verdict"] for rows in worlds]

    assert found.count(verdict) >= at_least
    assert set(found) <= {verdict, "unsure"}


def test_five_thumbs_down_on_one_topic_tell_nothing(tmp_path):
    rows = world(is_competence=False, count=1000)
    downs = [place for place, topic in enumerate(rows["topics"]) if topic == "topic 0"][:5]
    rows["labels"] = [place not in downs for place in range(1000)]

    found = diagnose(tmp_path, rows)

    assert (found["verdict"], found["recommendation"], found["prompts_of_the_rarer_label"]) == (
        "cannot_tell",
        "none",
        5,
    )
    assert "5 prompts have a row of the rarer label" in found["reason"]


def test_the_share_before_clamping_counts_and_what_is_clamped_is_said(tmp_path):
    found = diagnose(tmp_path, world(is_competence=False, seed=1))

    assert found["recommendation"] == "udm"
    assert "UDM's weights leave 50% of the undesired rows" in found["reason"]
    assert "25% of their weights are clamped" in found["reason"]


def test_a_correction_that_does_not_fit_is_said(tmp_path, capsys):
    found = diagnose(tmp_path, world(is_competence=True), correction="udm")

    assert (found["recommendation"], found["correction"], found["correction_fits"]) == ("none", "udm", False)
    assert "params.yaml has correction udm, which doesn't fit that" in capsys.readouterr().out


def test_a_correction_that_fits_is_left_alone(tmp_path):
    found = diagnose(tmp_path, world(is_competence=False, seed=1), correction="offset")

    assert (found["recommendation"], found["correction_fits"]) == ("udm", True)


def test_groups_and_both_correlations_are_written(tmp_path):
    found = diagnose(tmp_path, world(is_competence=True))

    assert found["grouped_by"] == "topic"
    assert set(found["groups"]) == {f"topic {i}" for i in range(8)}
    assert sum(group["num_rows"] for group in found["groups"].values()) == 1600
    assert found["correlation"]["per_token"]["value"] > 0.9
    assert set(found["correlation"]["sum"]) == {"value", "low", "high"}


def test_without_topics_prompts_are_grouped_by_how_likely_they_are_liked(tmp_path):
    rows = world(is_competence=True)
    rows = {name: values[:800] * 2 for name, values in rows.items()}

    found = diagnose(tmp_path, rows, topics=False, num_quantile_groups=6)

    assert found["grouped_by"] == "density_ratio"
    assert len(found["groups"]) <= 6
    assert found["verdict"] == "competence"


def test_the_topic_column_can_be_switched_off(tmp_path):
    found = diagnose(tmp_path, world(is_competence=True), topic_column=None)

    assert found["grouped_by"] == "density_ratio"


def test_held_out_and_unlabelled_rows_do_not_enter(tmp_path):
    rows = world(is_competence=True)
    expected = diagnose(tmp_path, {name: values[:800] for name, values in rows.items()})
    rows["labels"][1200:] = [None] * 400

    found = diagnose(tmp_path, rows, splits=["train"] * 800 + ["test"] * 400 + ["train"] * 400)

    assert found["groups"] == expected["groups"]


def test_no_shift_needs_no_correction(tmp_path):
    found = diagnose(tmp_path, world(is_competence=True), auc=0.51, correction="none")

    assert (found["verdict"], found["correction_fits"]) == ("no_shift", True)


def test_few_topics_leave_the_cause_open(tmp_path):
    rows = world(is_competence=True)
    rows["topics"] = [f"topic {int(topic[-1]) % 3}" for topic in rows["topics"]]

    found = diagnose(tmp_path, rows)

    assert found["verdict"] == "unsure"
    assert "3 groups" in found["reason"]


def test_logps_of_other_rows_are_refused(tmp_path):
    rows = world(is_competence=True, count=160)
    diagnose(tmp_path, rows)

    with pytest.raises(
        ContractError, match="expected the rows of .*tokens in their order, found others; rerun the stage"
    ):
        run(
            completions=tmp_path / "completions",
            tokens=tmp_path / "tokens",
            density_ratios=tmp_path / "ratios",
            density_metrics=tmp_path / "density.json",
            reference_logps=write_reference_logps(tmp_path / "few", [-1.0], [1]),
            metrics=tmp_path / "metrics.json",
            params=ShiftDiagnosisParams(),
        )


def test_a_log_without_labels_has_no_shift_to_explain(tmp_path):
    rows = world(is_competence=True, count=160)
    rows["labels"] = [None] * 160

    with pytest.raises(ValueError, match="expected labelled rows in the train split, found none"):
        diagnose(tmp_path, rows)


def test_a_shift_that_was_not_measured_has_no_cause_and_the_reason_is_handed_on(tmp_path, capsys):
    rows = world(is_competence=True, count=160)
    diagnose(tmp_path, rows)
    reason = "expected desired and undesired rows to compare, found 4 desired and 0 undesired ones"
    (tmp_path / "density.json").write_text(json.dumps({"correction": "none", "not_measured": reason}))

    run(
        **{name: tmp_path / name for name in ("completions", "tokens")},
        density_ratios=tmp_path / "ratios",
        density_metrics=tmp_path / "density.json",
        reference_logps=tmp_path / "logps",
        metrics=tmp_path / "metrics.json",
        params=ShiftDiagnosisParams(),
    )

    assert json.loads((tmp_path / "metrics.json").read_text()) == {"verdict": "not_measured", "reason": reason}
    assert f"shift_diagnosis: nothing to explain: {reason}" in capsys.readouterr().out


def test_thresholds_leave_a_band(tmp_path):
    with pytest.raises(ValidationError, match="competence_correlation is below rater_bias_correlation"):
        ShiftDiagnosisParams(competence_correlation=0.5)
