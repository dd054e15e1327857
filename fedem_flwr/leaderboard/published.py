"""Published figures, each with its source (`published.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fedem_flwr.report.labels import CENTRALISED

METRICS = ("hr@10", "ndcg@10")  # among 99 negatives


@dataclass(frozen=True)
class Published:
    """A method's figures in a source, by the names in `METRICS`."""

    source: str
    figures: tuple[float, float]


def published(dataset: str, protocol: str, method: str) -> list[Published]:
    """What has been published of a method; the first is what tables show."""
    method = method.removesuffix(CENTRALISED)
    return [
        Published(source["citation"], (float(hits), float(gain)))
        for source in _sources()
        if source["protocol"] == protocol
        for hits, gain in [source["figures"].get(dataset, {}).get(method, (None, None))]
        if hits is not None
    ]


@lru_cache(maxsize=1)
def _sources() -> list[dict[str, Any]]:
    text = files("fedem_flwr.leaderboard").joinpath("published.toml").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["source"]
    return found
