"""Operations that XLA runs slowly somewhere, written so that it does not."""
