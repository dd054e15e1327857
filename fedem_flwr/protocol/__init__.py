"""Evaluation protocols: leave-one-out splits that are pure functions of (interactions, seed)."""

from fedem_flwr.protocol.negatives import draw_negatives
from fedem_flwr.protocol.split import Protocol, Split, user_rows
from fedem_flwr.protocol.splits import make_split, split_to
from fedem_flwr.protocol.variants import shuffle_order

__all__ = ["Protocol", "Split", "draw_negatives", "make_split", "shuffle_order", "split_to", "user_rows"]
