"""Kill a run at random moments and resume it: is the result that of a run that nobody disturbed?

    python benchmarks/kill_and_resume.py --times 20 --dataset filmtrust --method fedem-released --rounds 20

A run is carried out once undisturbed. Then, as often as asked, it is started again and killed (SIGKILL) at a moment
drawn uniformly over the whole duration of the process, resumed, and its summary and metrics compared. A process that is
killed before its run's directory holds a configuration has nothing to resume and says so; it is started again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SAME = ("metrics", "rounds", "users", "items", "interactions", "failures", "controls")
_CHANGING = ("seconds",)


@dataclass(frozen=True)
class Attempt:
    """One kill: when, how far the run was, and what became of it."""

    moment: float
    lines: int
    state: str
    equal: bool


def main() -> None:
    """Print a table of kills; exit code 1 if a result differs."""
    options = _options()
    settings = [f"--set={setting}" for setting in options.set]
    run = [f"--dataset={options.dataset}", f"--method={options.method}", f"--rounds={options.rounds}", *settings]
    run += [f"--data-dir={options.data_dir}"] if options.data_dir else []
    run += [f"--set=run.checkpoint_every={options.checkpoint_every}", "--quiet"]
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="fedem-kill-") as folder:
        cache = f"--set=evaluation.cache_dir={folder}/cache"
        whole = Path(folder) / "whole"
        began = time.monotonic()
        _fedem("run", *run, cache, f"--out={whole}")
        duration = time.monotonic() - began
        expected = _result(whole)
        attempts = []
        for number in range(options.times):
            out = Path(folder) / str(number)
            attempts.append(_kill(["run", *run, cache, f"--out={out}"], out, draw.uniform(0, duration), expected))
    title = f"{options.method} on {options.dataset}, {options.rounds} rounds in {duration:.1f} s"
    _show(title, attempts)
    sys.exit(0 if all(attempt.equal for attempt in attempts) else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--method", default="fedmf")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--checkpoint-every", type=int, default=1)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--set", action="append", default=[], help="further settings, section.key=value")
    return parser.parse_args()


def _fedem(*arguments: str) -> None:
    subprocess.run([*_command(), *arguments], check=True, stdout=subprocess.DEVNULL)


def _command() -> list[str]:
    return [sys.executable, "-m", "fedem_flwr.cli"]


def _kill(run: list[str], out: Path, moment: float, expected: dict[str, Any]) -> Attempt:
    """Start a run, kill it, resume it."""
    process = subprocess.Popen([*_command(), *run], stdout=subprocess.DEVNULL)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (out / "config.toml").exists():
        _fedem(*run)
        return Attempt(moment, 0, "nothing to resume: started again", _result(out) == expected)
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text().count("\n") if metrics.exists() else 0
    state = "resumed" if process.returncode == -signal.SIGKILL else "had finished; resumed"
    leftovers = len(list(out.rglob("*.tmp")))
    state += f", {leftovers} half-written files" if leftovers else ""
    _fedem("resume", str(out), "--quiet")
    return Attempt(moment, lines, state, _result(out) == expected)


def _result(out: Path) -> dict[str, Any]:
    """What must be equal: the summary's results and every metrics line, without times."""
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in _CHANGING} for line in lines]
    return {**{key: summary[key] for key in _SAME}, "lines": kept}


def _show(title: str, attempts: list[Attempt]) -> None:
    table = Table(title=title)
    for column in ("killed after", "finished rounds", "then", "same result"):
        table.add_column(column)
    for attempt in sorted(attempts, key=lambda attempt: attempt.moment):
        cells = (f"{attempt.moment:.2f} s", str(attempt.lines), attempt.state, "yes" if attempt.equal else "NO")
        table.add_row(*cells)
    Console().print(table)
    Console().print(f"{sum(attempt.equal for attempt in attempts)} of {len(attempts)} ended with the same result")


if __name__ == "__main__":
    main()
