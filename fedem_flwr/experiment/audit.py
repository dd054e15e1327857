"""The leak audit: the same methods, on the same data set, under both protocols (docs/protocols.md)."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config, Tree, merge_trees, resolve
from fedem_flwr.config.search import paths
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.controls import remembered_controls
from fedem_flwr.experiment.controls import cache_folder, limits_of
from fedem_flwr.experiment.rounds import carry_out_rounds, check_run
from fedem_flwr.files import write_atomically
from fedem_flwr.protocol.split import Split
from fedem_flwr.pulse import tell
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.inputs import adapted, check_method, load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.text import visible

TRAINED = ("local-only", "fedem-released", "fedmf", "fedials")
FITTED = ("random", "popularity", "item_knn", "ease", "ease_recent")
PROTOCOLS = ("paper", "strict")
CAPTION = (
    "paper never draws the held-out items as training negatives, so tables that are private to a client leave them "
    "on top; "
    "a method that gains there and not under strict has memorised its own negatives."
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """An audit that can begin: whatever could be found wrong before training would have been.

    Attributes:
        base: a resolved configuration of the data set.
        splits: of each protocol.
        configs: of each trained method under each protocol; a method's width is the same under both.
    """

    base: Config
    splits: dict[str, Split]
    configs: dict[tuple[str, str], Config]

    @classmethod
    def prepare(cls, options: Tree) -> Audit:
        """Read the data and see that every method can be made of them.

        Args:
            options: what was asked for; laid over each method's preset.

        Raises:
            InputError: the audit would not come to its end.
        """
        for section, keys in {"method": ("name", "strategy", "base"), "data": ("protocol",)}.items():
            if given := [key for key in keys if key in options.get(section, {})]:
                raise InputError(
                    f"{section}.{given[0]}: an audit has its own methods, under both protocols; leave it out"
                )
        base = resolve({}, options, "options")
        rows = itertools.product(TRAINED, PROTOCOLS)
        configs = {(name, protocol): _config(options, name, protocol) for name, protocol in rows}
        if base.network.superlink:
            raise InputError("network.superlink: an audit starts nodes of its own; leave it out")
        for config in configs.values():
            check_run(config)
        require_writable(cache_folder(base), "give another folder with --set evaluation.cache_dir=...")
        interactions = load_interactions(base)
        splits = {}
        for done, name in enumerate(PROTOCOLS, 1):
            splits[name] = split_of(base.changed("data", protocol=name), interactions)
            tell("splitting, protocols", done, len(PROTOCOLS))
        narrowest, asked = min(splits.values(), key=lambda split: split.items), frozenset(paths(options))
        configs = {key: adapted(config, narrowest, asked) for key, config in configs.items()}
        for (_, protocol), config in configs.items():
            check_method(config, splits[protocol].items)
        return cls(base, splits, configs)

    @property
    def steps(self) -> int:
        """Rounds that it trains in all."""
        return sum(config.run.rounds for config in self.configs.values())

    def leak_table(self, on_step: Callable[[int], None]) -> list[Row]:
        """Measure every row: HR@10 and NDCG@10 among 99 negatives, at the round that each protocol reports.

        Args:
            on_step: told how many rounds are done.
        """
        rows: dict[str, Row] = {name: {"method": name} for name in (*FITTED, *TRAINED)}
        settings = self.base.evaluation
        done = 0
        for protocol, split in self.splits.items():
            controls = remembered_controls(
                split,
                cache_folder(self.base),
                settings.ease_lambda,
                settings.test_history,
                limits=limits_of(self.base),
            ).results
            for name, result in controls.items():
                if "sampled99" in result:  # it may have been skipped
                    _fill(rows[name], protocol, result["sampled99"])
            for name in TRAINED:
                config = self.configs[name, protocol]

                def advance(line: Row, before: int = done) -> None:
                    on_step(before + line["round"])

                with tempfile.TemporaryDirectory(prefix="fedem-audit-") as folder:
                    directory = RunDirectory(Path(folder) / "run").create()
                    carry_out_rounds(PreparedRun.create(directory, config, split), advance)
                    lines = directory.read_metrics()
                done += config.run.rounds
                _fill(rows[name], protocol, reported_line(lines, protocol)["test"]["sampled99"])
        return list(rows.values())


def _config(options: Tree, name: str, protocol: str) -> Config:
    """A method's preset under a protocol, with what was asked for laid over it."""
    wanted = {"data": {"protocol": protocol}, "method": {"name": name}, "run": {"checkpoint_every": 10**6}}
    return resolve({}, merge_trees(options, wanted), "options")


def require_writable(folder: Path, mend: str) -> None:
    """Find out now whether files can be written into a folder, and make it.

    Raises:
        InputError: they cannot; ends with `mend`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; {mend}") from None


def _fill(row: Row, protocol: str, figures: dict[str, float]) -> None:
    row[f"{protocol} HR@10"], row[f"{protocol} NDCG@10"] = figures["hr@10"], figures["ndcg@10"]


def write(folder: Path, title: str, rows: list[Row]) -> None:
    """Write the table as audit.md and audit.json."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{row[n]:.3f}" if isinstance(row.get(n), float) else str(row.get(n, "–")) for n in names] for row in rows
    ]
    table = ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]
    write_atomically(folder / "audit.md", "\n".join([f"# {visible(title)}", "", *table, "", CAPTION, ""]))
    write_atomically(folder / "audit.json", json.dumps(rows, indent=2) + "\n")
