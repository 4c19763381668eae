"""Image classification with CNNs in JAX: a ladder of stages, exact resume, checkpoints that serve themselves."""
