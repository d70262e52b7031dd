"""Files on disk: adapter directories, their contents, hashes and records."""
