"""Methods and controls under `strict`, over several seeds of the split: the tables of docs/honest.md.

    python -m benchmarks.honest --out FOLDER --data ml-100k ml-1m --methods fedials fedials-order --seeds 0 1 2 3 4

Each run is a `fedem run` with the data set's own settings, in a folder of its own; runs that are finished are not
repeated. The tables give means over the seeds and, after ±, the standard deviation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CONTROLS = ("popularity", "item_knn", "ease", "ease_recent")
Cells = dict[str, list[float]]


def carry_out(folder: Path, data: str, method: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """A run's summary; the run is made if it is not there."""
    out = folder / f"{data}-{method}-{seed}"
    if not (out / "summary.json").exists():
        command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--dataset", data, "--method", method, "--quiet"]
        settings = ["evaluation.local_only=false", *extra]
        command += ["--seed", str(seed), "--out", str(out), "--overwrite"]
        subprocess.run([*command, *(word for s in settings for word in ("--set", s))], check=True, stdout=sys.stderr)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def figures(result: dict[str, Any]) -> dict[str, float]:
    """The four figures of a table's row."""
    return {f"{way} {metric}": result[way][metric] for way in ("sampled99", "full") for metric in ("hr@10", "ndcg@10")}


def cell(values: list[float]) -> str:
    """Mean and deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def table(rows: dict[str, Cells]) -> str:
    """Markdown."""
    head = ["", "HR@10, 99 neg.", "NDCG@10, 99 neg.", "HR@10, catalogue", "NDCG@10, catalogue", "runs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, cells in rows.items():
        count = len(next(iter(cells.values())))
        lines.append("| " + " | ".join([name, *(cell(values) for values in cells.values()), str(count)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, and print one table a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", nargs="+", default=["ml-100k"])
    parser.add_argument("--methods", nargs="+", default=["fedials"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="extra", action="append", default=[], help="section.key=value, for every run")
    args = parser.parse_args()
    for data in args.data:
        rows: dict[str, Cells] = {}
        intervals: dict[str, list[str]] = {}
        for seed in args.seeds:
            for method in args.methods:
                summary = carry_out(args.out, data, method, seed, args.extra)
                results = {method: summary["metrics"][summary["selected"]]}
                if method == args.methods[0]:
                    results |= {name: summary["controls"].get(name) for name in CONTROLS}
                for name, result in results.items():
                    if result and "sampled99" in result:
                        for key, value in figures(result).items():
                            rows.setdefault(name, {}).setdefault(key, []).append(value)
                if compared := summary.get("comparison"):
                    found = compared["metrics"]["ndcg@10"]
                    text = f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}, {compared['control']})"
                    intervals.setdefault(method, []).append(text)
                print(f"{data} {method} seed {seed}", file=sys.stderr, flush=True)
        print(f"\n### {data}\n\n{table(rows)}\n")
        for method, texts in intervals.items():
            print(f"{method} against the best control, NDCG@10 in the catalogue, a seed each: {'; '.join(texts)}\n")


if __name__ == "__main__":
    main()
