"""Language models: loading, fixed-shape batches, log-probabilities, generation."""
