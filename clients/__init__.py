"""Flower clients: one file a kind. A client hosts a cohort of k >= 1 users and their private state.

The package is `fedem_flwr.clients` (see its `rooms`).
"""

from fedem_flwr.rooms import one_module

one_module(__name__)
