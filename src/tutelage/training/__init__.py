"""Training: the one trainer, its checkpoints and runs."""
