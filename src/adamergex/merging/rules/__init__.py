"""One file for each rule of merging."""
