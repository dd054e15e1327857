"""Real networked processes: a SuperLink, nodes that each hold a shard, and a server that holds none."""

NETWORK_FOLDER = "network"  # in a run's directory: shards, keys, states and logs of what was started here
