"""Kahneman-Tversky Optimization (KTO), with mismatched rows for its estimate of the KL divergence."""
