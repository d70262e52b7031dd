"""Engines walk a graph of steps; they know nothing of adapters."""
