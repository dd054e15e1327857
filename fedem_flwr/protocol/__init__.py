"""Evaluation protocols: leave-one-out splits that are pure functions of (interactions, seed)."""

from fedem_flwr.protocol.splits import Protocol, Split, draw_negatives, make_split, user_rows

__all__ = ["Protocol", "Split", "draw_negatives", "make_split", "user_rows"]
