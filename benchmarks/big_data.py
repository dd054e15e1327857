"""Seconds and peak memory of `fedem data info` and `fedem run` on 20 million rows, with the defaults.

    python -m benchmarks.big_data [--users 138000] [--items 26000] [--rows 20000000] [--folder DIR] [--set KEY=VALUE]

Synthetic rows of the shape of a large public data set: users uniform, items 26,000 · r ^ 2.5, times uniform; the file
(515 MB) is made once and kept where a folder is named. Either command is a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedem_flwr.bench.worlds import write_rows


def measured(words: list[str]) -> str:
    """Run a `fedem` command; returns what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "fedem_flwr.cli", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds, peak = time.perf_counter() - began, after.ru_maxrss / 2**20  # of the larger process so far: the run's
    return f"{seconds:,.1f} s, {busy:,.1f} s of processor time, peak {peak:.2f} GiB"


def main() -> None:
    """Make the data, then read and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 138_000), ("items", 26_000), ("rows", 20_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedem-big-") as made:
        folder = args.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / f"big-{args.users}-{args.items}-{args.rows}.csv"
        if not data.exists():
            write_rows(data, args.users, args.items, args.rows)
        said = [f"fedem data info: {measured(['data', 'info', str(data)])}"]
        settings = [word for setting in args.set for word in ("--set", setting)]
        cached = ["--set", f"evaluation.cache_dir={made}"]
        what = ["--dataset", str(data), "--method", "fedials", "--out", str(folder / "run"), "--overwrite"]
        words = ["run", *what, *cached, *settings]
        said.append(f"fedem run: {measured(words)}")
    print(*said, sep="\n")


if __name__ == "__main__":
    main()
