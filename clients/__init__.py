"""Flower clients: one file a kind. A client hosts a cohort of k >= 1 users and their private state."""
