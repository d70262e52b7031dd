"""Typed, frozen settings of single steps."""
