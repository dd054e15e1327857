"""Data sets as `Interactions`: known ones (found or downloaded), any delimited file, and a synthetic one."""

from fedem_flwr.data.catalog import SYNTHETIC, FoundDataset, fetch_dataset, find_dataset, load_dataset
from fedem_flwr.data.interactions import Interactions
from fedem_flwr.data.known import KNOWN_DATASETS, KnownDataset, dataset_entry
from fedem_flwr.data.loader import ABSENT, Columns, read_interactions
from fedem_flwr.data.synthetic import SyntheticConfig, synthetic_interactions

__all__ = [
    "ABSENT",
    "KNOWN_DATASETS",
    "SYNTHETIC",
    "Columns",
    "FoundDataset",
    "Interactions",
    "KnownDataset",
    "SyntheticConfig",
    "dataset_entry",
    "fetch_dataset",
    "find_dataset",
    "load_dataset",
    "read_interactions",
    "synthetic_interactions",
]
