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

from typing import TYPE_CHECKING

from fedem_flwr.version import __version__

if TYPE_CHECKING:
    from fedem_flwr.serving.recommender import Recommender as Recommender

__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> object:
    """`Recommender` on first use: torch and Flower take seconds to import."""
    if name == "Recommender":
        from fedem_flwr.serving.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
