"""Flower strategies: one file a way to take uploads in. The package is `fedem_flwr.strategies` (see its `rooms`)."""

from fedem_flwr.rooms import one_module

one_module(__name__)
