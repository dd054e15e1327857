"""The server: similarity of uploads, simplex weights (closed form and solver), combining tables in blocks."""

from fedem_flwr.aggregation.combine import average_rows, combine_blocks, combine_tables
from fedem_flwr.aggregation.similarity import similarity
from fedem_flwr.aggregation.weights import aggregation_weights, average_weights, simplex_weights

__all__ = [
    "aggregation_weights",
    "average_rows",
    "average_weights",
    "combine_blocks",
    "combine_tables",
    "similarity",
    "simplex_weights",
]
