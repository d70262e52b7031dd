"""Input rows: files, values, samples."""
