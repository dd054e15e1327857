"""The leak audit: the same methods, on the same data set, under both protocols (docs/protocols.md)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config, Tree, merge_trees, resolve
from fedem_flwr.evaluation.controls import cached_controls
from fedem_flwr.experiment.controls import cache_folder
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.inputs import adapted, load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

TRAINED = ("local-only", "fedem-released", "fedmf", "fedials")
FITTED = ("random", "popularity", "item_knn", "ease", "ease_recent")
PROTOCOLS = ("paper", "strict")
CAPTION = (
    "paper never draws the held-out items as training negatives, so tables that are private to a client leave them "
    "on top; "
    "a method that gains there and not under strict has memorised its own negatives."
)
Row = dict[str, Any]


def steps(options: Tree) -> int:
    """Rounds that the audit trains in all."""
    return sum(_config(options, name, protocol).run.rounds for name in TRAINED for protocol in PROTOCOLS)


def _config(options: Tree, name: str, protocol: str) -> Config:
    """A method's preset under a protocol, with what was asked for laid over it."""
    wanted = {"data": {"protocol": protocol}, "method": {"name": name}, "run": {"checkpoint_every": 10**6}}
    return resolve({}, merge_trees(options, wanted))


def leak_table(base: Config, options: Tree, on_step: Callable[[int], None]) -> list[Row]:
    """Measure every row: HR@10 and NDCG@10 among 99 negatives, at the round that each protocol reports.

    Args:
        base: a resolved configuration of the data set.
        options: what was asked for; laid over each method's preset.
        on_step: told how many rounds are done.
    """
    rows: dict[str, Row] = {name: {"method": name} for name in (*FITTED, *TRAINED)}
    interactions = load_interactions(base)
    done = 0
    for protocol in PROTOCOLS:
        split = split_of(base.changed("data", protocol=protocol), interactions)
        settings = base.evaluation
        controls = cached_controls(split, cache_folder(base), settings.ease_lambda, settings.test_history)
        for name, result in controls.items():
            if "sampled99" in result:  # it may have been skipped
                _fill(rows[name], protocol, result["sampled99"])
        for name in TRAINED:
            config = adapted(_config(options, name, protocol), split)

            def advance(line: Row, before: int = done) -> None:
                on_step(before + line["round"])

            with tempfile.TemporaryDirectory(prefix="fedem-audit-") as folder:
                directory = RunDirectory(Path(folder) / "run").create()
                carry_out_rounds(PreparedRun.create(directory, config, split), advance)
                lines = directory.read_metrics()
            done += config.run.rounds
            _fill(rows[name], protocol, reported_line(lines, protocol)["test"]["sampled99"])
    return list(rows.values())


def _fill(row: Row, protocol: str, figures: dict[str, float]) -> None:
    row[f"{protocol} HR@10"], row[f"{protocol} NDCG@10"] = figures["hr@10"], figures["ndcg@10"]


def write(folder: Path, title: str, rows: list[Row]) -> None:
    """Write the table as audit.md and audit.json."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{row[n]:.3f}" if isinstance(row.get(n), float) else str(row.get(n, "–")) for n in names] for row in rows
    ]
    table = ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]
    (folder / "audit.md").write_text("\n".join([f"# {title}", "", *table, "", CAPTION, ""]), encoding="utf-8")
    (folder / "audit.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
