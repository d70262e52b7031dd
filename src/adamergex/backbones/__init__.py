"""The models that adapters sit on: loading, packages, trimming, heads."""
