"""The UDM classifier: plain arrays, judged on prompts that it hasn't seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from stages.udm.classifier import (
    LogisticClassifier,
    clamped_odds,
    cross_fit,
    deal_folds,
    draw_rows,
    draw_rows_with_replacement,
    fit_classifier,
    load_classifier,
    save_classifier,
)


def two_clouds(count=200, *, width=3, gap=1.0, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 0
    embeddings = random.normal(size=(count, width)).astype(np.float32)
    embeddings[labels, 0] += gap
    return embeddings, labels


def test_logits_are_those_of_scikit_learn():
    embeddings, labels = two_clouds()
    expected = LogisticRegression(class_weight="balanced").fit(embeddings, labels).decision_function(embeddings)

    logits = fit_classifier(embeddings, labels).logits(embeddings)

    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_standardised_embeddings_make_scale_and_place_irrelevant():
    embeddings, labels = two_clouds()
    expected = fit_classifier(embeddings, labels, standardize=True).logits(embeddings)
    moved = embeddings * np.array([100.0, 0.01, 3.0]) + np.array([5.0, -2.0, 1e3])

    logits = fit_classifier(moved, labels, standardize=True).logits(moved)

    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_dimension_without_variance_says_nothing():
    embeddings, labels = two_clouds()
    embeddings[:, 2] = 7.0

    classifier = fit_classifier(embeddings, labels, standardize=True)

    assert np.isfinite(classifier.logits(embeddings)).all()
    assert classifier.coefficients[2] == pytest.approx(0.0, abs=1e-9)


def test_classes_of_unequal_size_count_alike():
    # Nothing tells the classes apart, so the logit is 0 although nine of ten rows are desired.
    embeddings = np.zeros((100, 2), dtype=np.float32)

    logits = fit_classifier(embeddings, np.arange(100) < 90).logits(embeddings[:1])

    assert logits[0] == pytest.approx(0.0, abs=1e-6)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="expected rows of both classes, found 4 positive of 4"):
        fit_classifier(np.zeros((4, 2), dtype=np.float32), np.ones(4, dtype=bool))


def test_embeddings_of_another_encoder_are_refused():
    classifier = fit_classifier(*two_clouds())

    with pytest.raises(ValueError, match=r"expected embeddings of width 3, found shape \(5, 4\)"):
        classifier.logits(np.zeros((5, 4), dtype=np.float32))


def test_a_fold_is_judged_by_a_classifier_that_has_not_seen_it():
    embeddings, labels = two_clouds()
    folds = np.arange(200) // 2 % 4
    fitted = cross_fit(embeddings, labels, folds, num_folds=4)

    logits = fitted.logits(embeddings, folds)

    outside = fit_classifier(embeddings[folds != 2], labels[folds != 2])
    np.testing.assert_allclose(logits[folds == 2], outside.logits(embeddings[folds == 2]))


def test_a_prompt_that_no_classifier_has_seen_is_judged_by_the_full_one():
    embeddings, labels = two_clouds()
    fitted = cross_fit(embeddings, labels, np.arange(200) // 2 % 4, num_folds=4)

    logits = fitted.logits(embeddings[:3], np.full(3, -1))

    np.testing.assert_allclose(logits, fit_classifier(embeddings, labels).logits(embeddings[:3]))


def test_labels_that_follow_from_nothing_are_not_learnt():
    # As many dimensions as prompts: in the sample anything can be told apart.
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(60, 60)).astype(np.float32), random.random(60) < 0.5
    fitted = cross_fit(embeddings, labels, np.arange(60) % 5, num_folds=5)

    own = fitted.full.logits(embeddings)
    unseen = fitted.logits(embeddings, np.arange(60) % 5)

    assert ((own > 0) == labels).mean() == 1.0
    assert ((unseen > 0) == labels).mean() < 0.75


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 3]), min_size=1, max_size=40), st.integers(min_value=2, max_value=6))
def test_a_class_of_at_least_two_prompts_stands_in_at_least_two_folds(kinds, num_folds):
    array = np.array(kinds)

    folds = deal_folds([f"p{i}" for i in range(len(kinds))], array, num_folds=num_folds)

    assert ((folds == -1) == (array == -1)).all()
    for members in ((array == 0) | (array == 1), (array == 1) | (array == 2)):
        assert len(np.unique(folds[members])) >= min(2, members.sum())
    sizes = np.bincount(folds[folds >= 0], minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1


def test_the_fold_of_a_prompt_does_not_depend_on_the_order_of_prompts():
    names, kinds = [f"p{i}" for i in range(30)], np.arange(30) % 3
    folds = deal_folds(names, kinds, num_folds=4)

    assert np.array_equal(deal_folds(names[::-1], kinds[::-1], num_folds=4), folds[::-1])


def test_rows_are_drawn_without_replacement_and_a_new_row_replaces_one_at_most():
    names = [f"row{i}" for i in range(100)]
    drawn = draw_rows(names, limit=30, seed=1)

    more = draw_rows([*names, "new"], limit=30, seed=1)

    assert len(set(drawn.tolist())) == 30
    assert len(set(drawn.tolist()) - set(more.tolist())) <= 1
    assert not np.array_equal(draw_rows(names, limit=30, seed=2), drawn)
    assert draw_rows(names, limit=100, seed=1).tolist() == list(range(100))


def test_the_peers_draw_is_that_of_numpys_legacy_generator():
    np.random.seed(42)
    expected = [np.random.choice(12, 6, replace=True), np.random.choice(4, 4, replace=True)]

    drawn = draw_rows_with_replacement(12, 4, limit=6, seed=42)

    assert [part.tolist() for part in drawn] == [part.tolist() for part in expected]


def test_odds_are_clamped_and_finite():
    # p = 0.5 -> 1; p = 0.75 -> 3; p = 1 -> 1e8 -> 10; p = 0 -> 0.5
    odds = clamped_odds(np.array([0.0, np.log(3.0), 800.0, -800.0]), minimum=0.5, maximum=10.0)

    np.testing.assert_allclose(odds, [1.0, 3.0, 10.0, 0.5], rtol=1e-6)


def test_a_saved_classifier_gives_the_same_logits(tmp_path):
    embeddings, labels = two_clouds()
    fitted = cross_fit(embeddings, labels, np.arange(200) // 2 % 3, num_folds=3, standardize=True)
    save_classifier(tmp_path / "c.json", fitted, served_to_desired=fitted)

    loaded = load_classifier(tmp_path / "c.json")

    assert np.array_equal(loaded.full.logits(embeddings), fitted.full.logits(embeddings))
    assert len(loaded.folds) == 3
    other = load_classifier(tmp_path / "c.json", name="served_to_desired")
    assert np.array_equal(other.folds[1].coefficients, fitted.folds[1].coefficients)
    assert isinstance(loaded.full, LogisticClassifier)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"kind": "udm_classifier", "version": 1}'])
def test_a_file_that_holds_no_classifier_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)

    with pytest.raises(ValueError, match="expected a UDM classifier desired, found none; rerun density_ratio"):
        load_classifier(tmp_path / "c.json")


def test_a_classifier_of_another_version_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"kind": "udm_classifier", "version": 9}')

    with pytest.raises(ValueError, match="expected udm_classifier v1, found udm_classifier v9"):
        load_classifier(tmp_path / "c.json")
