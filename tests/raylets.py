"""A Ray cluster of two machines, which both are this one: two raylets, with a core each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedem_flwr.runtime.surroundings import environment, quiet, short_directory


@contextmanager
def two_raylets() -> Iterator[str]:
    """Start them; gives the address of the first."""
    from ray.cluster_utils import Cluster

    with environment(RAY_USAGE_STATS_ENABLED="0"), short_directory() as directory:
        with quiet():
            head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": str(directory)}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            cluster.add_node(num_cpus=1)
        try:
            yield cluster.address
        finally:
            with quiet():
                cluster.shutdown()
