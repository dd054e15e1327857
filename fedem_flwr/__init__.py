"""A federated recommender on Flower: FedEM (elastic merging), its comparison methods, and fedials.

Dimensions, used in every docstring and shape comment:

    k  users of a cohort (the leading client axis)
    n  users of a run
    m  items of the catalogue
    d  embedding width
    b  samples of a batch
    s  samples of a user in one round (positives and drawn negatives)
    t  touched rows: the items of a user that occur in a round's samples

A table is ``(m, d)``; tables of a cohort are stacked as ``(k, m, d)``.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from fedem_flwr.rooms import find_rooms
from fedem_flwr.version import __version__

if TYPE_CHECKING:
    from fedem_flwr.api import Result as Result
    from fedem_flwr.api import compare as compare
    from fedem_flwr.api import load as load
    from fedem_flwr.api import resume as resume
    from fedem_flwr.api import run as run
    from fedem_flwr.serving.recommender import Recommender as Recommender

find_rooms()

__all__ = ["Recommender", "Result", "__version__", "compare", "load", "resume", "run"]

_MODULES = {
    "Recommender": "fedem_flwr.serving.recommender",
    **dict.fromkeys(("Result", "compare", "load", "resume", "run"), "fedem_flwr.api"),
}


def __getattr__(name: str) -> object:
    """What is exported, on first use: torch and Flower take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower looks when it is imported
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Also what is not imported yet, so that a notebook completes it."""
    return sorted({*globals(), *__all__})
