"""The README's picture: test HR@10 by round under both protocols, from finished runs on one data set.

    python -m benchmarks.two_protocols --paper RUN --strict RUN --best RUN --out docs/images/two-protocols.png

Each RUN is the directory of a `fedem run`: the same method under `paper` and `strict`, and another one under `strict`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fedem_flwr.report.run_directory import RunDirectory

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def main() -> None:
    """Draw the two panels and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", type=Path, required=True, help="run directory of a run under `paper`")
    parser.add_argument("--strict", type=Path, required=True, help="the same method under `strict`")
    parser.add_argument("--best", type=Path, help="a run of another method under `strict`, drawn beside it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    titles = ("protocol paper (leaks): ranked among 99 negatives", "protocol strict: ranked among 99 negatives")
    for axis, path, title in zip(axes, (args.paper, args.strict), titles, strict=True):
        directory = RunDirectory(path)
        summary = directory.read_summary()
        _curve(axis, directory, BLUE)
        if args.best is not None and path == args.strict:
            _curve(axis, RunDirectory(args.best), GREEN)
        levels = {"popularity": GREY, "ease": GREY, "local_only": ORANGE}
        for name, colour in levels.items():
            level = summary["controls"][name]["sampled99"]["hr@10"]
            axis.axhline(level, color=colour, linestyle=":", linewidth=1.5)
            label = {"ease": "EASE", "local_only": "no federation at all"}.get(name, name)
            below = level < 0.2  # there the curve runs just above
            place = {"va": "top" if below else "bottom", "ha": "right"}
            axis.text(100, level + (-0.012 if below else 0.012), label, color=colour, fontsize=9, **place)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("round")
        axis.set_ylim(0, 1.06)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test HR@10")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)


def _curve(axis: plt.Axes, directory: RunDirectory, colour: str) -> None:
    lines = directory.read_metrics()
    rounds = [line["round"] for line in lines]
    values = [line["test"]["sampled99"]["hr@10"] for line in lines]
    axis.plot(rounds, values, color=colour, linewidth=2)
    at = len(rounds) * 2 // 5
    name = directory.read_summary()["method"]
    above = values[at] < 0.2
    offset = (0, 10 if above else -14)
    axis.annotate(name, (rounds[at], values[at]), offset, textcoords="offset points", color=colour, fontsize=9)


if __name__ == "__main__":
    main()
