"""Figures of finished runs, one record a run: what the tables, the pictures and leaderboard.json are made of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.evaluation import ranking
from fedem_flwr.leaderboard.cells import read_record
from fedem_flwr.leaderboard.grid import Name
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.labels import CENTRALISED, CONTROL_LABELS, control_label, sample_text
from fedem_flwr.report.run_directory import METRICS, SUMMARY, Json, RunDirectory, number_at
from fedem_flwr.report.tables import selected_key, text_at

METRIC_NAMES = ranking.METRICS
COSTS = ("seconds_per_round", "bytes_up", "bytes_down", "peak_rss_bytes")
BEYOND = ("coverage", "gini", "novelty", "long_tail", "popularity_recommended")  # as `list_diagnostics` has them
PRIVACY = ("epsilon", "delta")  # `Privacy` as columns


@dataclass(frozen=True, eq=False)
class Record:
    """A finished run.

    Attributes:
        summary: its summary.json. diagnostics: its diagnostics.json, empty where it has none.
        seconds: that it took in all, as a cell; None where that is not known.
    """

    name: Name
    directory: RunDirectory
    summary: Json
    diagnostics: Json
    seconds: float | None

    @classmethod
    def of(cls, directory: RunDirectory) -> Record:
        """Read a run that has finished.

        Raises:
            InputError: it has not, or is no run. FedemError: it is damaged.
        """
        summary = directory.open().read_summary()
        seed = number_at(summary, "seed")
        if missing := [key for key in ("dataset", "protocol", "method") if not isinstance(summary.get(key), str)]:
            raise FedemError(f"{directory.path / SUMMARY} is damaged: it does not say its {missing[0]}")
        words = [text_at(summary, key) for key in ("dataset", "protocol", "method")]
        name = Name(words[0], words[1], words[2], 0 if seed is None else int(seed))
        try:
            diagnostics = directory.read_diagnostics()
        except InputError:
            diagnostics = {}
        return cls(name, directory, summary, diagnostics, number_at(read_record(directory), "seconds"))

    @property
    def reported(self) -> Mapping[str, Any]:
        """Test figures of the round that the protocol reports."""
        found = self.summary.get("metrics", {}).get(selected_key(self.summary), {})
        return found if isinstance(found, Mapping) else {}

    def figure(self, way: str, metric: str) -> float | None:
        """A test figure of the reported round, by list (`ranking.LISTS`) and name."""
        return figure_of(self.reported, way, metric, self.name.protocol)

    def control(self, control: str, way: str, metric: str) -> float | None:
        """A control's test figure."""
        found = self.summary.get("controls", {}).get(control)
        return figure_of(found, way, metric, self.name.protocol) if isinstance(found, Mapping) else None

    def sampled(self, control: str) -> bool:
        """Whether a control was measured on a sample of the users."""
        found = self.summary.get("controls", {}).get(control)
        return isinstance(found, Mapping) and bool(found.get("users"))


def figure_of(record: Mapping[str, Any], way: str, metric: str, protocol: str) -> float | None:
    """A figure of a summary's section: the headline's list stands at its top, either may stand under its name."""
    headline = rules_of(protocol).headline
    under = number_at(record, way, metric)
    return number_at(record, metric) if under is None and way == headline else under


def records_of(paths: Iterable[Path]) -> list[Record]:
    """The records of runs that are given by their directories.

    Raises:
        InputError: some have not finished (all of these are named), two are of one name, or one is damaged.
    """
    found: dict[Name, Record] = {}
    unfinished: list[str] = []
    for path in paths:
        directory = RunDirectory(path).open()
        try:
            if not _is_finished(directory):
                unfinished.append(f"{path} (round {_rounds_done(directory)})")
                continue
            record = Record.of(directory)
        except InputError:
            raise
        except FedemError as error:  # somebody gave this run: a file that is damaged is bad input
            raise InputError(f"{error}; or leave this run out") from error
        other = found.setdefault(record.name, record)
        if other is not record:
            raise InputError(f"{other.directory.path} and {path} are both '{record.name}': leave one out")
    if unfinished:
        raise InputError(
            f"{len(unfinished)} of these runs have not finished: {', '.join(unfinished)}; wait for them, continue them "
            "with `fedem resume`, or leave them out"
        )
    return list(found.values())


def _is_finished(directory: RunDirectory) -> bool:
    """Whether a run has a result, and has not been gone on with since (from an earlier checkpoint)."""
    if not (directory.path / SUMMARY).is_file():
        return False
    rounds = number_at(directory.read_summary(), "rounds")
    return rounds is None or _rounds_done(directory) >= rounds


def _rounds_done(directory: RunDirectory) -> int:
    try:
        return (directory.path / METRICS).read_bytes().count(b"\n")
    except OSError:
        return 0


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: over those that have it. deviation: standard deviation of the sample; None of one.
        values: by seed.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where no seed has the figure."""
        found = tuple(value for value in values if value is not None)
        if not found:
            return None
        return cls(statistics.mean(found), statistics.stdev(found) if len(found) > 1 else None, found)


@dataclass(frozen=True)
class Privacy:
    """What local differential privacy came to, of the user who sent the most.

    Attributes:
        epsilon: composed over all uploads of the run. delta: its δ; 0 where ε holds without exception.
    """

    epsilon: float
    delta: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Privacy | None:
        """The weakest of the runs'; None where one of them has none."""
        found = [
            (number_at(record.summary, "ldp", "composed"), number_at(record.summary, "ldp", "delta") or 0.0)
            for record in records
        ]
        known = [(epsilon, delta) for epsilon, delta in found if epsilon is not None]
        return cls(*max(known)) if known and len(known) == len(found) else None


@dataclass(frozen=True, eq=False)
class Row:
    """A method, or a control, in a table.

    Attributes:
        records: of the method's seeds; of a control, of one run for each seed that has it.
        figures: list and metric to its spread over seeds.
        alone: the same for the method without federation.
        costs: `COSTS` to their spread over seeds.
        lists: `BEYOND` to their spread: what of the users' top 10 is no accuracy.
        privacy: of the noise on uploads, where there is any.
    """

    label: str
    is_control: bool
    records: tuple[Record, ...]
    figures: Mapping[tuple[str, str], Spread | None]
    alone: Mapping[tuple[str, str], Spread | None]
    costs: Mapping[str, Spread | None]
    lists: Mapping[str, Spread | None]
    privacy: Privacy | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """What was measured on one data set under one protocol: figures that can be set beside each other."""

    dataset: str
    protocol: str
    rows: tuple[Row, ...]

    @property
    def headline(self) -> str:
        """The list that the protocol reports first."""
        return rules_of(self.protocol).headline

    @property
    def methods(self) -> list[Row]:
        """Rows of methods."""
        return [row for row in self.rows if not row.is_control]

    @property
    def noised(self) -> bool:
        """Whether a row has an ε."""
        return any(row.privacy for row in self.rows)

    @property
    def controls(self) -> list[Row]:
        """Rows of controls."""
        return [row for row in self.rows if row.is_control]


_PATHS = [(way, metric) for way in ranking.LISTS for metric in METRIC_NAMES]


def tables_of(records: Sequence[Record]) -> list[Table]:
    """A table for each data set and protocol, in the order in which they come; the best method first."""
    places = list(dict.fromkeys((record.name.dataset, record.name.protocol) for record in records))
    return [_table(*place, [r for r in records if (r.name.dataset, r.name.protocol) == place]) for place in places]


def _table(dataset: str, protocol: str, records: Sequence[Record]) -> Table:
    methods = [
        _method_row(method, [record for record in records if record.name.method == method])
        for method in dict.fromkeys(record.name.method for record in records)
    ]
    one_a_seed = list({record.name.seed: record for record in reversed(records)}.values())[::-1]
    measured = {control for record in records for control in record.summary.get("controls", {})} - {"local_only"}
    shown = [*(key for key in CONTROL_LABELS if key in measured), *sorted(measured - CONTROL_LABELS.keys())]
    controls = [_control_row(control, one_a_seed) for control in shown]
    headline = rules_of(protocol).headline, "ndcg@10"

    def score(row: Row) -> float:
        spread = row.figures.get(headline)
        return -spread.mean if spread else 1.0

    return Table(
        dataset, protocol, (*sorted(methods, key=score), *(row for row in controls if any(row.figures.values())))
    )


def _method_row(method: str, records: Sequence[Record]) -> Row:
    central = any(record.summary.get("centralised") is True for record in records)
    return Row(
        method + CENTRALISED if central else method,
        False,
        tuple(records),
        {path: Spread.of(record.figure(*path) for record in records) for path in _PATHS},
        {path: Spread.of(record.control("local_only", *path) for record in records) for path in _PATHS},
        {cost: Spread.of(number_at(record.summary, cost) for record in records) for cost in COSTS},
        {name: Spread.of(number_at(record.diagnostics, "lists", name) for record in records) for name in BEYOND},
        Privacy.of(records),
    )


def _control_row(control: str, records: Sequence[Record]) -> Row:
    figures = {path: Spread.of(record.control(control, *path) for record in records) for path in _PATHS}
    return Row(control_label(control), True, tuple(records), figures, {}, {}, {})


def samples_said(tables: Sequence[Table]) -> list[str]:
    """For each table whose rounds were looked at with a sample of the users, what that means for its figures."""
    found = []
    for table in tables:
        words = {sample_text(record.summary) for row in table.methods for record in row.records} - {""}
        found += [f"{table.dataset}, {table.protocol}: {text}" for text in sorted(words)]
    return found


def readable(records: Sequence[RunDirectory]) -> tuple[list[Record], dict[str, str]]:
    """The records of runs; and of those whose files are damaged, why."""
    found, damaged = [], {}
    for directory in records:
        try:
            found.append(Record.of(directory))
        except (FedemError, json.JSONDecodeError) as error:
            damaged[str(directory.path)] = str(error)
    return found, damaged
