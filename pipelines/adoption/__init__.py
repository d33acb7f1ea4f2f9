"""What `python -m pipelines adopt` does: looks at a log and a model, and makes the graph and its choices theirs."""
