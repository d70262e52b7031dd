"""What one step is: typed, frozen settings."""
