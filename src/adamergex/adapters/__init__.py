"""How an adapter structure meets a model."""
