"""Rows that come in: files, values, samples."""
