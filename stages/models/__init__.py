"""Models: pointers to them, loading, log-probabilities, sampling, scores, comparison; diffusion pipelines as well."""
