"""Other programs' adapter files."""
