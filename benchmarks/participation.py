"""Rounds until fedials is within 0.01 of its final NDCG@10, with all, 10 % and 2 % of the users in a round; and bytes.

    python -m benchmarks.participation --data ml-100k --out FOLDER

The final figure is that of full participation. Test figures among 99 negatives, every round evaluated with one fixed
half-life. Bytes are those of a user's own messages in a round in which it takes part, beside FedMF's and FedEM's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHARES = {1.0: 20, 0.1: 100, 0.02: 300}  # participants: rounds
WITHIN = 0.01
OTHERS = ("fedmf", "fedem")


def run(out: Path, data: str, method: str, rounds: int, settings: list[str]) -> list[dict[str, Any]]:
    """Metrics lines of a run."""
    command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--dataset", data, "--method", method, "--quiet"]
    command += ["--rounds", str(rounds), "--out", str(out), "--overwrite"]
    fixed = ["evaluation.controls=false", "evaluation.local_only=false", *settings]
    subprocess.run([*command, *(word for s in fixed for word in ("--set", s))], check=True, stdout=sys.stderr)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--half-life", type=float, default=5.0)
    args = parser.parse_args()
    common = ["fold_in.tune=false", f"fold_in.half_life={args.half_life}"]
    goal = 0.0
    print("| users a round | rounds | final NDCG@10 | first round within 0.01 | kB up a participant | kB down |")
    print("|---|---|---|---|---|---|")
    for share, rounds in SHARES.items():
        every = 1 if share > 0.02 else 5
        settings = [*common, f"run.participants={share}", f"evaluation.every={every}"]
        lines = run(args.out / f"{args.data}-{share}", args.data, "fedials", rounds, settings)
        values = {line["round"]: line["test"]["sampled99"]["ndcg@10"] for line in lines if line["test"]}
        last = values[max(values)]
        goal = goal or last
        reached = next((str(r) for r, value in values.items() if value >= goal - WITHIN), "not reached")
        up, down = lines[0]["bytes_up"] / share / 1e3, lines[0]["bytes_down"] / 1e3
        print(f"| {share:.0%} | {rounds} | {last:.4f} | {reached} | {up:.1f} | {down:.1f} |", flush=True)
    for method in OTHERS:
        line = run(args.out / f"{args.data}-{method}", args.data, method, 2, [])[-1]
        print(
            f"| {method}, all | 2 | – | – | {line['bytes_up'] / 1e3:.1f} | {line['bytes_down'] / 1e3:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
