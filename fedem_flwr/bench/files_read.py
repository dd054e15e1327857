"""Reading a delimited file, against the quickest way that pandas has."""

from __future__ import annotations

import pandas as pd

from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Side
from fedem_flwr.bench.worlds import write_rows
from fedem_flwr.data import read_interactions


def _reading(benchmark: Benchmark, setting: Setting) -> Row:
    rows = setting.either(200_000, 5_000_000)
    path = setting.folder / "rows.csv"
    write_rows(path, rows // 150, 5000, rows)

    def plain() -> object:
        frame = pd.read_csv(path, engine="pyarrow")
        return [pd.factorize(frame[name]) for name in ("userId", "movieId")], frame

    return benchmark.ratio(
        setting,
        Side("ours", lambda: read_interactions(path)),
        Side("pandas", plain),
        f"{rows:,} rows of user, item, rating and time, {path.stat().st_size / 1e6:.0f} MB",
        "ours detects columns and checks every row; pandas is told nothing, and reads by pyarrow",
    )


READING = (Benchmark("loading/read", "reading a delimited file and numbering its ids: ours against pandas", _reading),)
