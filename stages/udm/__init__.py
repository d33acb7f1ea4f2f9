"""Underlying distribution matching (UDM): prompt embeddings, density ratios, diagnostics."""
