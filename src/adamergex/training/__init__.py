"""Training adapters and heads."""
