"""Ranking metrics and the controls that every result is measured against."""

from fedem_flwr.evaluation.controls import (
    Control,
    compute_controls,
)
from fedem_flwr.evaluation.figures import headline
from fedem_flwr.evaluation.ranking import (
    CUTOFFS,
    METRICS,
    MetricSums,
    Part,
    evaluate_scores,
    full_ranks,
    sampled_ranks,
)

__all__ = [
    "CUTOFFS",
    "METRICS",
    "Control",
    "MetricSums",
    "Part",
    "compute_controls",
    "evaluate_scores",
    "full_ranks",
    "headline",
    "sampled_ranks",
]
