"""What lies on a disk: adapter directories, their files, hashes and records."""
