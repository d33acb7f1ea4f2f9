"""Stage `density_ratio`: ratios, corrections and diagnostics from labelled prompts."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from stages.contracts.artifact import read_manifest, read_table
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.files import tree_digest
from stages.density_ratio import DensityRatioParams, run
from stages.udm.classifier import load_classifier
from tests.stages.feedback import write_embeddings, write_tokens

OUTPUTS = ("density_ratios", "classifier", "metrics", "plots")


@pytest.fixture(scope="module")
def feedback():
    """300 prompts of two kinds, of which people like the second more; the last 60 held out, and 20 never answered."""
    random = np.random.default_rng(0)
    kinds = random.random(320) < 0.5
    embeddings = random.normal(size=(320, 4)) * 0.3
    embeddings[:, 0] += kinds
    rows = [
        {
            "prompt_id": f"prompt{prompt}",
            "label": bool(random.random() < (0.8 if kinds[prompt] else 0.3)),
            "split": "train" if prompt < 240 else "test",
        }
        for prompt in range(300)
        for _ in range(3)
    ]
    return rows, embeddings, kinds


def compute(folder, rows, embeddings, **params):
    folder.mkdir(exist_ok=True)
    run(
        tokens=write_tokens(folder / "tokens", rows),
        prompt_embeddings=write_embeddings(
            folder / "embeddings", [f"prompt{i}" for i in range(len(embeddings))], embeddings
        ),
        **{name: folder / name for name in OUTPUTS},
        params=DensityRatioParams(**params),
    )
    return read_table(folder / "density_ratios", DENSITY_RATIOS), json.loads((folder / "metrics").read_text())


def column(table, name):
    return table[name].to_numpy()


def test_the_ratio_is_near_the_true_one(tmp_path, feedback):
    rows, _, kinds = feedback

    table, _ = compute(tmp_path, rows, 3 * np.eye(2)[kinds.astype(int)], min_density_ratio=0.01)

    # The true ratio is that of the shares of a kind of prompt among desired and among undesired rows.
    train = [(row["label"], kinds[int(row["prompt_id"][6:])]) for row in rows if row["split"] == "train"]
    for kind in (False, True):
        of_desired = np.mean([k == kind for label, k in train if label])
        of_undesired = np.mean([k == kind for label, k in train if not label])
        found = np.median(column(table, "density_ratio")[kinds == kind])
        assert found == pytest.approx(of_desired / of_undesired, rel=0.1)


def test_every_prompt_has_a_ratio_in_the_order_of_the_embeddings(tmp_path, feedback):
    rows, embeddings, _ = feedback

    table, metrics = compute(tmp_path, rows, embeddings)

    assert table["prompt_id"].to_pylist() == [f"prompt{i}" for i in range(320)]
    assert metrics["prompts"] == {"all": 320, "labelled": 240}
    assert metrics["rows"]["served"] == 240 * 3 + 20


@pytest.mark.parametrize("correction", ["none", "udm", "offset", "deployment"])
def test_a_correction_fills_its_own_columns_alone(tmp_path, feedback, correction):
    rows, embeddings, _ = feedback

    table, metrics = compute(tmp_path, rows, embeddings, correction=correction)

    ones, zeros = np.ones(320, dtype=np.float32), np.zeros(320, dtype=np.float32)
    probabilities = column(table, "desirable_probability")
    expected = {
        "none": (ones, ones, zeros),
        "udm": (ones, column(table, "density_ratio"), zeros),
        "offset": (ones, ones, np.log(probabilities / (1 - probabilities))),
    }
    if correction in expected:
        for name, values in zip(
            ("desired_weight", "undesired_weight", "logit_offset"), expected[correction], strict=True
        ):
            np.testing.assert_allclose(column(table, name), values, rtol=1e-4, atol=1e-5)
    assert metrics["correction"] == correction


def test_deployment_weighs_both_sides_towards_all_prompts(tmp_path, feedback):
    rows, embeddings, kinds = feedback

    table, _ = compute(tmp_path, rows, embeddings, correction="deployment", min_density_ratio=0.01)

    desired, undesired = column(table, "desired_weight"), column(table, "undesired_weight")
    # Liked prompts are too many among desired rows and too few among undesired ones.
    assert np.median(desired[kinds]) < 1 < np.median(desired[~kinds])
    assert np.median(undesired[~kinds]) < 1 < np.median(undesired[kinds])
    assert not column(table, "logit_offset").any()


def test_ratios_and_weights_are_clamped(tmp_path, feedback):
    rows, embeddings, _ = feedback

    table, metrics = compute(
        tmp_path, rows, embeddings * 50, correction="udm", min_density_ratio=0.9, max_density_ratio=1.1
    )

    ratios = column(table, "density_ratio")
    assert ratios.min() == np.float32(0.9)
    assert ratios.max() == np.float32(1.1)
    assert 0 < metrics["clamped_share"]["high"] < metrics["clamped_share"]["low"] < 1


def test_a_prompts_own_labels_do_not_move_its_ratio(tmp_path, feedback):
    rows, embeddings, _ = feedback
    before, _ = compute(tmp_path / "before", rows, embeddings)
    flipped = [{**row, "label": not row["label"]} if row["prompt_id"] == "prompt7" else row for row in rows]
    # Both labels must be there before and after, or the prompt is dealt into another fold.
    labels = {row["label"] for row in rows if row["prompt_id"] == "prompt7"}
    assert labels == {True, False}

    after, _ = compute(tmp_path / "after", flipped, embeddings)

    assert column(after, "density_ratio")[7] == pytest.approx(column(before, "density_ratio")[7], rel=1e-6)


def test_labels_of_held_out_rows_do_not_enter(tmp_path, feedback):
    rows, embeddings, _ = feedback
    before, _ = compute(tmp_path / "before", rows, embeddings)

    after, _ = compute(
        tmp_path / "after", [{**row, "label": True} if row["split"] == "test" else row for row in rows], embeddings
    )

    assert after.equals(before)


def test_embeddings_that_say_nothing_have_an_auc_of_a_half(tmp_path, feedback):
    rows, embeddings, _ = feedback
    noise = np.random.default_rng(1).normal(size=(len(embeddings), 40))

    _, metrics = compute(tmp_path, rows, noise)

    assert metrics["auc"]["low"] < 0.5 < metrics["auc"]["high"] + 0.05
    assert metrics["brier_score"] > 0.25


def test_metrics_measure_the_shift(tmp_path, feedback):
    rows, embeddings, _ = feedback

    _, metrics = compute(tmp_path, rows, embeddings, correction="udm")

    assert 0.65 < metrics["auc"]["low"] < metrics["auc"]["value"] < metrics["auc"]["high"] < 0.85
    assert metrics["brier_score"] < 0.25
    assert metrics["calibration_error"] < 0.1
    shares = metrics["effective_sample_share"]
    assert 0 < shares["udm"] == shares["undesired"] < 1
    assert shares["desired"] == 1.0


def test_what_clamping_evens_out_is_counted_before_it(tmp_path, feedback):
    rows, embeddings, _ = feedback

    _, metrics = compute(tmp_path, rows, embeddings, correction="udm", min_density_ratio=1.0, max_density_ratio=1.0)

    shares = metrics["effective_sample_share"]
    assert shares["udm"] == 1.0
    assert 0.1 < shares["udm_before_clamping"] < 0.95


def test_rows_are_drawn_up_to_the_sample_size(tmp_path, feedback):
    rows, embeddings, _ = feedback

    _, metrics = compute(tmp_path, rows, embeddings, prompt_sample_size=100)

    assert (metrics["rows"]["fitted_desired"], metrics["rows"]["fitted_undesired"]) == (100, 100)


def test_the_classifier_scores_prompts_that_were_not_there(tmp_path, feedback):
    rows, embeddings, _ = feedback
    table, _ = compute(tmp_path, rows, embeddings)

    logits = load_classifier(tmp_path / "classifier").full.logits(embeddings[300:].astype(np.float32))

    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), column(table, "desirable_probability")[300:], rtol=1e-5)


def test_parity_fits_once_on_rows_drawn_as_the_peer_does(tmp_path, feedback):
    rows, embeddings, _ = feedback
    train = [row for row in rows if row["split"] == "train"]
    labels = np.array([row["label"] for row in train])
    prompts = np.array([int(row["prompt_id"][6:]) for row in train])
    random = np.random.RandomState(3)
    plus, minus = (
        prompts[labels == side][random.choice((labels == side).sum(), 50, replace=True)] for side in (True, False)
    )

    table, metrics = compute(tmp_path, rows, embeddings, parity=True, prompt_sample_size=50, seed=3)

    from sklearn.linear_model import LogisticRegression

    sample = embeddings.astype(np.float32)[np.concatenate([plus, minus])]
    peer = LogisticRegression(class_weight="balanced").fit(sample, [1] * 50 + [0] * 50)
    expected = peer.predict_proba(embeddings.astype(np.float32))[:, 1]
    np.testing.assert_allclose(column(table, "desirable_probability"), expected, rtol=2e-3)
    assert metrics["num_folds"] == 1


def test_outputs_have_the_same_bytes_each_time(tmp_path, feedback):
    rows, embeddings, _ = feedback
    for name in ("one", "two"):
        compute(tmp_path / name, rows, embeddings, correction="deployment")

    for output in OUTPUTS:
        assert tree_digest(tmp_path / "one" / output) == tree_digest(tmp_path / "two" / output)


def test_plots_are_tables_of_reliability_and_weights(tmp_path, feedback):
    rows, embeddings, _ = feedback
    compute(tmp_path, rows, embeddings)

    reliability = (tmp_path / "plots" / "reliability.csv").read_text().splitlines()
    weights = (tmp_path / "plots" / "weights.csv").read_text().splitlines()

    assert reliability[0] == "low,high,num_rows,predicted,observed"
    assert weights[0] == "label,share,density_ratio"
    assert len(weights) == 1 + 2 * 21


def assert_neutral(folder, table, metrics, reason):
    """Nothing was measured: weights that change nothing, and the reason wherever somebody may look for a number."""
    for name in ("density_ratio", "desired_weight", "undesired_weight"):
        assert set(table[name].to_pylist()) == {1.0}
    assert set(table["logit_offset"].to_pylist()) == {0.0}
    assert set(table["desirable_probability"].to_pylist()) == {0.5}
    assert reason in metrics["not_measured"]
    assert "auc" not in metrics
    assert read_manifest(folder / "density_ratios", DENSITY_RATIOS)["meta"] == metrics
    assert json.loads((folder / "classifier").read_text()) == metrics
    assert [(folder / "plots" / name).read_text() for name in ("reliability.csv", "weights.csv")] == ["", ""]


@pytest.mark.parametrize(("label", "counts"), [(True, "720 desired and 0 undesired"), (False, "0 desired and 720")])
@pytest.mark.parametrize("correction", ["none", "udm"])
def test_feedback_of_one_class_gives_neutral_weights_and_says_why(tmp_path, feedback, label, counts, correction):
    rows, embeddings, _ = feedback

    table, metrics = compute(tmp_path, [{**row, "label": label} for row in rows], embeddings, correction=correction)

    assert_neutral(tmp_path, table, metrics, f"expected desired and undesired rows to compare, found {counts}")
    assert table["prompt_id"].to_pylist() == [f"prompt{i}" for i in range(320)]
    assert metrics["correction"] == correction


def test_feedback_without_labels_likewise(tmp_path):
    table, metrics = compute(tmp_path, few_rows([None, None]), np.eye(2))

    assert_neutral(tmp_path, table, metrics, "found 0 desired and 0 undesired ones in the train split")


def test_what_was_measured_has_no_such_reason(tmp_path, feedback):
    rows, embeddings, _ = feedback

    _, metrics = compute(tmp_path, rows, embeddings)

    assert "not_measured" not in metrics
    assert "not_measured" not in read_manifest(tmp_path / "density_ratios", DENSITY_RATIOS)["meta"]


def few_rows(labels):
    return [{"prompt_id": f"prompt{index}", "label": label} for index, label in enumerate(labels)]


def test_two_prompts_of_each_label_are_enough(tmp_path):
    table, metrics = compute(tmp_path, few_rows([True, True, False, False]), np.eye(4))

    assert np.isfinite(column(table, "density_ratio")).all()
    assert metrics["num_folds"] == 4


def test_one_prompt_of_a_label_is_too_few_to_cross_fit(tmp_path):
    table, metrics = compute(tmp_path, few_rows([True, True, True, False]), np.eye(4))

    assert_neutral(
        tmp_path, table, metrics, "found 3 of desired and 1 of undesired rows; collect more feedback, or set"
    )


def test_without_cross_fitting_one_prompt_of_each_label_is_enough(tmp_path):
    table, _ = compute(tmp_path, few_rows([True, False]), np.eye(2), num_folds=1)

    assert column(table, "density_ratio")[0] > 1 > column(table, "density_ratio")[1]


def test_embeddings_of_other_prompts_are_refused(tmp_path, feedback):
    rows, embeddings, _ = feedback

    with pytest.raises(ValueError, match="expected prompt 'prompt100' of .*, found none; rerun both"):
        compute(tmp_path, rows, embeddings[:100])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min_density_ratio": 2.0, "max_density_ratio": 1.0}, "max_density_ratio is below min_density_ratio"),
        ({"parity": True, "correction": "offset"}, "parity: true knows no correction offset"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(params, message):
    with pytest.raises(ValidationError, match=message):
        DensityRatioParams(**params)
