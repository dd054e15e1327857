r"""Tables of methods: a grid of METHODS × DATA SETS × PROTOCOLS × SEEDS, several runs at a time.

    python -m benchmarks.methods_table --methods pfedrec fedncf --data ml-100k filmtrust --protocols paper strict \
        --seeds 0 1 2 --jobs 8 --device cpu --out tables/methods.jsonl

Each cell is a run of the in-process runtime in a process of its own, and one line of the `--out` file: figures by
round, of the best rounds, seconds, bytes, memory. Cells whose line is there are skipped, so the same command goes on
after whatever befell it; a cell that fails is named at the end, its output is kept beside the file, and the others go
on. `--alone` adds each method without federation, `--controls` what needs no training of its own. Needs no network:
data sets are found through FEDEM_DATA. `--print` makes the Markdown tables from what is there.

`paper` shows the best round by test HR@10, as the papers report it; `strict` the best by validation NDCG@10.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.methods_markdown import CONTROLS, tables

ALONE = " alone"  # behind a method's name: every client by itself


@dataclass(frozen=True)
class Cell:
    """One run, or the controls of one split.

    Attributes:
        method: a preset, a method by its path, one of them with `ALONE` behind it, or `CONTROLS`.
        rounds: None: the preset's. settings: further ones, as `--set` takes them.
    """

    method: str
    data: str
    protocol: str
    seed: int
    device: str
    rounds: int | None
    settings: tuple[str, ...]

    @property
    def key(self) -> str:
        """What makes two cells the same."""
        parts = [self.data, self.protocol, self.method, f"seed {self.seed}"]
        parts += [f"{self.rounds} rounds"] * (self.rounds is not None) + sorted(self.settings)
        return ", ".join(parts)


# One cell, in a process of its own.


def carry_out(cell: Cell, threads: int) -> dict[str, Any]:
    """Its line: what was measured."""
    from fedem_flwr.cli.options import options_tree, quiet_libraries
    from fedem_flwr.config import merge_trees, resolve
    from fedem_flwr.experiment.controls import controls_of, local_only
    from fedem_flwr.runtime.inputs import adapted, load_interactions, split_of

    quiet_libraries()
    method = "fedmf" if cell.method == CONTROLS else cell.method.removesuffix(ALONE)
    run = {"rounds": cell.rounds, "seed": cell.seed, "device": cell.device, "threads": threads}
    named = {"name": None if ":" in method else method, "strategy": method if ":" in method else None}
    given = {"method": named, "data": {"dataset": cell.data, "protocol": cell.protocol}, "run": run}
    config = resolve({}, merge_trees(options_tree(given, []), options_tree({}, cell.settings)))
    config = config.changed("run", checkpoint_every=config.run.rounds)  # nobody resumes a cell
    split = split_of(config, load_interactions(config))
    config = adapted(config, split, dim_is_preset=not any(s.startswith("model.dim") for s in cell.settings))
    if cell.method == CONTROLS:
        config = config.changed("evaluation", local_only=False)
        return {"rounds": None, "controls": controls_of(split, config, lambda _: None)}
    facts = {"users": split.users, "items": split.items, "rounds": config.run.rounds}
    if cell.method.endswith(ALONE):
        return {**facts, "reported": local_only(split, config, lambda _: None)}
    return {**facts, **measured(config, split)}


def measured(config: Any, split: Any) -> dict[str, Any]:
    """A run's figures; what it wrote is thrown away."""
    import torch

    from fedem_flwr.experiment.rounds import carry_out_rounds
    from fedem_flwr.report.run_directory import RunDirectory
    from fedem_flwr.report.selection import best_line, reported_line
    from fedem_flwr.runtime.prepared import PreparedRun

    with tempfile.TemporaryDirectory(prefix="methods-table-") as folder:
        run = PreparedRun.create(RunDirectory(Path(folder) / "run").create(), config, split)
        outcome = carry_out_rounds(run, lambda _: None)
        lines = run.directory.read_metrics()
    shown = {"reported": reported_line(lines, split.protocol), "last": lines[-1]}
    shown |= {rule: best_line(lines, rule) for rule in ("best_validation", "best_test")}
    seconds = [line["seconds"] for line in lines]
    return {
        **{name: {"round": line["round"], **line["test"]} for name, line in shown.items()},
        "curve": [_point(line) for line in lines if line["test"]],
        "seconds": statistics.median(seconds[1:] or seconds),
        "bytes_up": statistics.mean(line["bytes_up"] for line in lines),
        "bytes_down": statistics.mean(line["bytes_down"] for line in lines),
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "cuda_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() and config.run.device != "cpu" else "",
        "failures": len(outcome.failures),
        "nonfinite": sum(line.get("nonfinite_scores", 0) for line in lines),
    }


def _point(line: dict[str, Any]) -> list[float]:
    """Round, loss, validation NDCG@10 of the protocol, test HR@10 and NDCG@10 among 99 negatives."""
    test = line["test"]["sampled99"]
    return [line["round"], line["train_loss"], line["validation"]["ndcg@10"], test["hr@10"], test["ndcg@10"]]


# The grid.


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Cells that are done; of a cell that is there twice the later line. A line that was cut off does not count."""
    found: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            found[line["key"]] = line
        except (ValueError, KeyError):
            print(f"{path}: a line that is none is passed over", file=sys.stderr)
    return list(found.values())


def carry_out_all(cells: Sequence[Cell], out: Path, jobs: int, threads: int) -> list[str]:
    """Carry cells out, `jobs` at a time; returns the keys of those that failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.read_bytes().endswith(b"\n"):
        out.write_bytes(out.read_bytes() + b"\n")  # a line that was cut off stays apart from the next
    lock, failed = Lock(), list[str]()
    began, done = time.monotonic(), 0

    def one(cell: Cell) -> None:
        nonlocal done
        line, errors = in_its_own_process(cell, threads)
        with lock:
            done += 1
            if line is None:
                failed.append(cell.key)
                log = out.with_suffix(f".{len(failed)}.err")
                log.write_text(f"{cell.key}\n{errors}", encoding="utf-8")
                told = f"FAILED, see {log}: {errors.strip().splitlines()[-1] if errors.strip() else 'no word'}"
            else:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                told = f"{line['wall']:.0f} s"
            minutes = (time.monotonic() - began) / 60
            print(f"[{done}/{len(cells)}, {minutes:.1f} min] {cell.key}: {told}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(one, cells):
            pass
    return failed


def in_its_own_process(cell: Cell, threads: int) -> tuple[dict[str, Any] | None, str]:
    """Its line, or None and what the process said on standard error."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.methods_table", "--cell", json.dumps(asdict(cell))]
    command += ["--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        return None, ended.stderr or f"ended with {ended.returncode}"
    line = {"key": cell.key, **asdict(cell), **json.loads(ended.stdout.splitlines()[-1])}
    return {**line, "wall": round(time.monotonic() - began, 1)}, ""


def main() -> int:
    """Carry out what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--data", nargs="+", default=["filmtrust", "ml-100k"])
    parser.add_argument("--protocols", nargs="+", default=["paper", "strict"], choices=["paper", "strict"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a cell; 0: torch's own choice")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rounds", type=int, help="instead of the preset's")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="section.key=value, for every run")
    parser.add_argument("--alone", action="store_true", help="each method also without federation")
    parser.add_argument("--controls", action="store_true", help="also what is fitted: popularity, item-kNN, EASE")
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"), help="a line a finished cell")
    parser.add_argument("--print", dest="printing", action="store_true", help="carry nothing out")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        asked = json.loads(args.cell)
        print(json.dumps(carry_out(Cell(**{**asked, "settings": tuple(asked["settings"])}), args.threads)))
        return 0
    names = [*args.methods, *(name + ALONE for name in args.methods if args.alone), *[CONTROLS] * args.controls]
    settings = tuple(args.settings)
    cells = [
        Cell(name, data, protocol, seed, args.device, *((args.rounds, settings) if name != CONTROLS else (None, ())))
        for seed in args.seeds  # first one of everything
        for data in args.data
        for protocol in args.protocols
        for name in names
    ]
    there = {line["key"] for line in read_lines(args.out)}
    missing = [] if args.printing else [cell for cell in cells if cell.key not in there]
    failed = carry_out_all(missing, args.out, args.jobs, args.threads) if missing else []
    print(tables(read_lines(args.out)))
    for key in failed:
        print(f"FAILED: {key}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
