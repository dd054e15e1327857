"""What is known of a data set by name, and the catalogue of such names."""

from __future__ import annotations

from typing import Final

from fedem_flwr.data.known_entry import KnownDataset
from fedem_flwr.data.known_large import LARGE
from fedem_flwr.data.known_small import SMALL
from fedem_flwr.errors import InputError, suggest

__all__ = ["FAMILIES", "KNOWN_DATASETS", "KnownDataset", "dataset_entry", "family_of"]

FAMILIES: Final = ("amazon-2014", "amazon-2018")
"""Beginnings of names of many entries that differ by category alone."""
KNOWN_DATASETS: Final = {entry.name: entry for entry in (*SMALL, *LARGE)}


def family_of(name: str) -> str:
    """The family that a name is of; empty: none."""
    return next((family for family in FAMILIES if name.startswith(f"{family}-")), "")


def dataset_entry(name: str) -> KnownDataset:
    """The catalogue entry of a name; InputError with the nearest name where there is none."""
    if name not in KNOWN_DATASETS:
        raise InputError(f"unknown data set '{name}'{suggest(name, KNOWN_DATASETS)}")
    return KNOWN_DATASETS[name]
