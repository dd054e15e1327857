"""Clusters of users by the vectors that a server sees of them, and a choice that takes from each as many."""

from __future__ import annotations

import warnings

import numpy as np

from fedem_flwr.randomness import keyed_bits, keyed_permutation


def clusters_of(vectors: np.ndarray, clusters: int, seed: int, round_: int) -> np.ndarray:
    """(n,) int64 the cluster of each vector (n, d), by k-means from keyed starting points.

    Equal vectors are one cluster; others may stay empty.
    """
    from scipy.cluster.vq import kmeans2  # takes a while to import

    distinct = len(np.unique(vectors, axis=0))
    if distinct <= 1 or clusters <= 1:
        return np.zeros(len(vectors), np.int64)
    rng = np.random.default_rng(int(keyed_bits(seed, "clusters", round_)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        found = kmeans2(vectors.astype(np.float64), min(clusters, distinct), minit="++", rng=rng)
    return np.asarray(found[1], np.int64)


def evenly(labels: np.ndarray, count: int, seed: int, round_: int) -> np.ndarray:
    """(count,) positions drawn at random, from each cluster as many; where one has too few, more of the others.

    Args:
        labels: (n,) the cluster of each position.
    """
    order = keyed_permutation(len(labels), seed, "evenly", round_).numpy()
    by_cluster = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # its place in its cluster's own order
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels))
    return by_cluster[np.lexsort((place[by_cluster], turn))][:count]
