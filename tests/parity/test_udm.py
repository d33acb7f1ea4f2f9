"""The UDM classifier as TRL 0.21 fits it."""

import numpy as np
from safetensors.numpy import load_file

from stages.udm.classifier import clamped_odds, fit_classifier
from tests.material import SHARED, needs_shared


@needs_shared
def test_coefficients_and_probabilities_are_the_peers():
    tensors = load_file(SHARED / "parity" / "out" / "bco" / "udm_fit.safetensors")

    classifier = fit_classifier(tensors["in/X"], tensors["in/y"] == 1, max_iter=100)

    np.testing.assert_allclose(classifier.coefficients, tensors["out/coef"][0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(classifier.intercept, tensors["out/intercept"][0], rtol=2e-3, atol=2e-3)
    logits = classifier.logits(tensors["in/X"])
    expected = tensors["out/proba"][:, 1].astype(np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, rtol=2e-3)
    odds = np.clip(expected / (1 - expected + 1e-8), 0.5, 10.0)
    np.testing.assert_allclose(clamped_odds(logits, minimum=0.5, maximum=10.0), odds, rtol=5e-3)
