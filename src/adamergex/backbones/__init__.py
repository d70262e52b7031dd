"""Backbone models: loading, packaged backbones, trimming, heads."""
