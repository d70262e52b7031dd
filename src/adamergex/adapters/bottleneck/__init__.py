"""Bottleneck, language and invertible adapters."""
