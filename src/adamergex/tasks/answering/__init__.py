"""Prompts, and how a model's answers are scored, generated and parsed."""
