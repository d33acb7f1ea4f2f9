"""Training of reward models on pairs."""
