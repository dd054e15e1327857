"""Flower strategies: one file a method."""
