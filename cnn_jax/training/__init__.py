"""Training: from a configuration to checkpoints and records."""
