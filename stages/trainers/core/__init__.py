"""What all trainers share: configuration, forward, reference, metrics, checkpoints, and a training as a stage."""
