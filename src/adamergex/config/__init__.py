"""What a user writes: settings files."""
