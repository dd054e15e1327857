"""A cell's run directory: a run like any other, known by what its results depend on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config
from fedem_flwr.errors import FedemError, InputError, NotForTheseData
from fedem_flwr.files import write_atomically
from fedem_flwr.leaderboard.folder import Folder
from fedem_flwr.leaderboard.grid import Cell, Name
from fedem_flwr.leaderboard.keys import cell_key
from fedem_flwr.leaderboard.splits import Splits, lay_out
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.split import Split, SplitFacts
from fedem_flwr.report.run_directory import METRICS, REPORT, SUMMARY, RunDirectory
from fedem_flwr.report.run_path import default_run_path
from fedem_flwr.runtime.inputs import adapted
from fedem_flwr.runtime.prepared import PreparedRun

RECORD = "cell.json"  # of a run that is a cell: its key, and how long it took
_SHOWN = 8  # characters of a key in a directory's name


@dataclass(frozen=True, eq=False)
class Prepared:
    """A cell that fits its data.

    Attributes:
        config: as it is carried out on these data.
        split: where the split is that the cell gets. facts: what is known of it.
        key: what its results depend on, as a digest.
    """

    name: Name
    config: Config
    split: Path
    facts: SplitFacts
    key: str
    directory: RunDirectory

    @property
    def finished(self) -> bool:
        """Whether all that a run leaves behind is there, of this very key."""
        there = all((self.directory.path / name).is_file() for name in (SUMMARY, REPORT))
        return there and read_record(self.directory).get("key") == self.key

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self.directory.holds_run() and read_record(self.directory).get("key") == self.key

    @property
    def rounds_done(self) -> int:
        """Rounds whose metrics line is written: counted, not read."""
        try:
            return (self.directory.path / METRICS).read_bytes().count(b"\n")
        except OSError:
            return 0

    @property
    def own_config(self) -> bool:
        """Whether the directory's configuration is what was asked for, to the letter."""
        return self.directory.read_config() == self.config.to_toml()

    def lay_out(self, command: str) -> None:
        """Write what the run starts from, unless that is there.

        Raises:
            FedemError: it cannot be written.
        """
        if self.begun:
            return
        try:
            shutil.rmtree(self.directory.path, ignore_errors=True)  # of a process that died while it wrote this
            self.directory.create()
            split = lay_out(self.split, self.directory.path / SPLIT_FOLDER)
            write_record(self.directory, {"key": self.key})
            PreparedRun.create(self.directory, self.config, split, command, saved=True)  # last: all is there to go on
        except OSError as error:
            raise FedemError(
                f"cannot write {self.directory.path}: {error.strerror}; free space, then say the same again"
            ) from error


def prepare(
    cells: Sequence[Cell], folder: Folder, on_split: Callable[[int], None] | None = None
) -> tuple[list[Prepared], dict[Name, str]]:
    """Make the splits of cells that have none yet, and fit the cells to their data.

    Args:
        on_split: told how many cells have theirs.

    Returns:
        The cells that can be carried out; and those that cannot, with the reason: data that cannot be split as the
        protocol wants it (they have no times), or that the method cannot work with.

    Raises:
        InputError: data that cannot be had.
    """
    splits = Splits(folder.splits)
    ready: list[Prepared] = []
    left_out: dict[Name, str] = {}
    known: dict[Path, tuple[SplitFacts, str] | InputError] = {}  # what is split once, or refused once
    for number, cell in enumerate(cells, 1):
        place = splits.place_of(cell.config)
        if place not in known:
            known[place] = _split_at(place, splits, cell.config)
        found = known[place]
        try:
            if isinstance(found, InputError):
                raise found
            facts, content = found
            config = adapted(cell.config, facts, cell.given)
        except InputError as error:
            left_out[cell.name] = str(error)
        else:
            key = cell_key(config, content)
            ready.append(Prepared(cell.name, config, place, facts, key, _directory(folder, cell.name, key)))
        if on_split is not None:
            on_split(number)
    return ready, left_out


def _split_at(place: Path, splits: Splits, config: Config) -> tuple[SplitFacts, str] | InputError:
    """What is known of a split and the digest of its content; or why the protocol cannot cut these data."""
    try:
        content = splits.content_of(config)
    except NotForTheseData as error:
        return error
    return Split.load(place), content


def _directory(folder: Folder, name: Name, key: str) -> RunDirectory:
    words = default_run_path(name.dataset, name.method, name.protocol).name.rsplit("-", 2)[0]
    return RunDirectory(folder.runs / f"{words}-{name.seed}-{key[:_SHOWN]}")


def read_record(directory: RunDirectory) -> dict[str, Any]:
    """What is known of a cell beside its run; empty where it is none, or the file is damaged."""
    try:
        record = json.loads((directory.path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(directory: RunDirectory, record: Mapping[str, Any]) -> None:
    """Store it."""
    write_atomically(directory.path / RECORD, json.dumps(record) + "\n")
