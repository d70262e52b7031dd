"""Whole tables of results: plans, transfer, studies."""
