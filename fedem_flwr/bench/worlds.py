"""The data that the suite is measured on: generated, so that it is the same wherever the package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.bench.plain_loop import LeaveOneOut, load
from fedem_flwr.config import Config, merge_trees, resolve
from fedem_flwr.runtime.inputs import load_interactions

_BLOCK = 1_000_000

Tree = Mapping[str, Mapping[str, Any]]


def shape(users: int, items: int, mean: float = 40.0) -> dict[str, Any]:
    """A `[data]` section: so many users of so many items, with so many rows each on average."""
    return {"dataset": "synthetic", "synthetic": {"users": users, "items": items, "mean_interactions": mean}}


def config_of(method: str, data: Mapping[str, Any], settings: Tree | None = None) -> Config:
    """A run of a method on generated data, evaluated against nothing."""
    fixed = {
        "data": data,
        "method": {"name": method},
        "evaluation": {"controls": False, "local_only": False},
        "run": {"checkpoint_every": 10**6, "device": "cpu"},
    }
    return resolve({}, merge_trees(fixed, settings or {}))


def write_ratings(config: Config, path: Path) -> Path:
    """A configuration's rows as a file of user, item, rating and time, separated by commas, without a header."""
    data = load_interactions(config)
    times = np.arange(len(data.user)) if data.time is None else data.time.astype(np.int64)
    rows = zip(data.user.tolist(), data.item.tolist(), times.tolist(), strict=True)
    with open(path, "x", encoding="ascii") as file:
        file.writelines(f"{user},{item},1,{time}\n" for user, item, time in rows)
    return path


def for_the_plain_loop(config: Config, folder: Path) -> LeaveOneOut:
    """The same rows as the plain loop takes them."""
    return load(write_ratings(config, folder / "ratings.csv"))


def write_rows(path: Path, users: int, items: int, rows: int) -> None:
    """A CSV of user, item, rating and time, of the shape of a large public data set; users and times are uniform."""
    draw = np.random.default_rng(0)
    with open(path, "x", encoding="ascii") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            user, item = draw.integers(0, users, count), (items * draw.random(count) ** 2.5).astype(np.int64)
            rating, moment = draw.integers(1, 11, count) / 2, draw.integers(800_000_000, 1_500_000_000, count)
            columns = (user.tolist(), item.tolist(), rating.tolist(), moment.tolist())
            file.writelines(f"{u},{i},{r},{t}\n" for u, i, r, t in zip(*columns, strict=True))
