"""Backbones and the adapter, all with a leading client axis."""
