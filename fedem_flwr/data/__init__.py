"""Data sets as `Interactions`: known ones (found or downloaded), any delimited file or DataFrame, a synthetic one."""

from fedem_flwr.data.catalog import SYNTHETIC, FoundDataset, fetch_dataset, find_dataset, load_dataset, open_source
from fedem_flwr.data.columns import ABSENT, Columns
from fedem_flwr.data.frame import read_frame
from fedem_flwr.data.interactions import Interactions, Source, gather
from fedem_flwr.data.known import KNOWN_DATASETS, KnownDataset, dataset_entry
from fedem_flwr.data.loader import read_interactions
from fedem_flwr.data.new_users import ChosenUsers, KnownRows, hold_out_users, with_known_items
from fedem_flwr.data.reading import ColumnRead, Reading
from fedem_flwr.data.synthetic import SyntheticConfig, SyntheticSource, synthetic_interactions

__all__ = [
    "ABSENT",
    "KNOWN_DATASETS",
    "SYNTHETIC",
    "ChosenUsers",
    "ColumnRead",
    "Columns",
    "FoundDataset",
    "Interactions",
    "KnownDataset",
    "KnownRows",
    "Reading",
    "Source",
    "SyntheticConfig",
    "SyntheticSource",
    "dataset_entry",
    "fetch_dataset",
    "find_dataset",
    "gather",
    "hold_out_users",
    "load_dataset",
    "open_source",
    "read_frame",
    "read_interactions",
    "synthetic_interactions",
    "with_known_items",
]
