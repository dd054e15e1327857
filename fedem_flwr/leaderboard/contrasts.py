"""Differences of a table, user by user: each method against the best control, and against each other method.

What is compared is the model that each run serves, by the headline's NDCG@10: the best round's by validation where
clients keep nothing, else the last round's. Where that is not the reported round, tables have other figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.significance import Difference, holm, paired_differences
from fedem_flwr.leaderboard.gather import Row, Table
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.labels import CONTROL_LABELS, control_label
from fedem_flwr.report.per_user import PerUser

METRIC = "ndcg@10"
Figures = dict[int, NDArray[np.float32]]  # by seed: (n,) of each user


@dataclass(frozen=True)
class Contrast:
    """A method against another, or against a control.

    Attributes:
        seeds: that both have, on the same split. adjusted: Holm's p, over all contrasts of the table.
    """

    method: str
    against: str
    is_control: bool
    seeds: int
    difference: Difference
    adjusted: float

    @property
    def sure(self) -> int:
        """1 or -1 where the method is better, or worse, at the level of 5 % over the whole table; else 0."""
        return 0 if self.adjusted >= 0.05 else 1 if self.difference.mean > 0 else -1


@dataclass(frozen=True)
class Contrasts:
    """Those of a table, and what could not be compared, in words."""

    found: tuple[Contrast, ...]
    notes: tuple[str, ...]


def contrasts_of(table: Table, *, seed: int = 0) -> Contrasts:
    """Compare the methods of a table, users drawn anew 10,000 times and the same for all comparisons.

    Args:
        seed: of the draws.
    """
    notes: list[str] = []
    if not table.controls:
        notes.append("no control was measured (evaluation.controls = false): nothing to hold the methods against")
    kept = {row.label: _kept(row, notes) for row in table.methods}
    if len({run.people for runs in kept.values() for run in runs.values()}) > 1:
        return Contrasts((), (*notes, "runs have different users: they are not compared user by user"))
    pairs = list(_pairs(table, kept, notes))
    if not pairs:
        return Contrasts((), tuple(notes))
    means = np.stack([np.mean(differences, axis=0, dtype=np.float64) for _, _, _, differences in pairs])  # (c, n)
    known = np.isfinite(means).all(axis=0)
    if not known.any():
        return Contrasts((), (*notes, "no user was scored in all runs"))
    if not known.all() and not rules_of(table.protocol).by_instant:  # where not everybody is asked
        notes.append(f"{int((~known).sum()):,} users were not scored in all runs, and are left out of the comparison")
    differences = paired_differences(means[:, known], seed=seed)
    adjusted = holm([each.p for each in differences])
    found = [
        Contrast(method, against, is_control, len(each), difference, p)
        for (method, against, is_control, each), difference, p in zip(pairs, differences, adjusted, strict=True)
    ]
    return Contrasts(tuple(found), tuple(notes))


def _kept(row: Row, notes: list[str]) -> dict[int, PerUser]:
    """What the runs of a method have kept of each user, by seed."""
    found = {}
    for record in row.records:
        try:
            kept = PerUser.load(record.directory.path)
        except FedemError as error:
            notes.append(str(error))
            continue
        if kept is None:
            notes.append(f"{record.name}: no figures of each user (the run is older, or its data are elsewhere)")
        else:
            found[record.name.seed] = kept
    return found


def _pairs(
    table: Table, kept: Mapping[str, Mapping[int, PerUser]], notes: list[str]
) -> Iterator[tuple[str, str, bool, list[NDArray[np.float32]]]]:
    """Method, rival, whether that is a control, and for each seed the users' differences."""
    control = _best_control(table)
    if control is not None and any(record.sampled(control) for row in table.methods for record in row.records):
        notes.append(
            f"{control_label(control)} was measured on a sample of the users, which each seed draws anew: no method is "
            "compared with it user by user"
        )
        control = None
    for method, runs in kept.items():
        name = f"{table.headline}/{METRIC}"
        against = [
            run.metric(table.headline, METRIC) - run.controls[control][name]
            for run in runs.values()
            if control is not None and name in run.controls.get(control, {})
        ]
        if against and control is not None:
            yield method, control_label(control), True, against
    for one, other in combinations(kept, 2):
        both = [
            kept[one][seed].metric(table.headline, METRIC) - kept[other][seed].metric(table.headline, METRIC)
            for seed in sorted(kept[one].keys() & kept[other].keys())
            if kept[one][seed].split == kept[other][seed].split
        ]
        if both:
            yield one, other, False, both


def _best_control(table: Table) -> str | None:
    """The control with the highest figure: which is hardest to beat."""
    keys = {label: key for key, label in CONTROL_LABELS.items()}
    figures = {keys.get(row.label, row.label): row.figures.get((table.headline, METRIC)) for row in table.controls}
    known = {key: spread.mean for key, spread in figures.items() if spread is not None}
    return max(known, key=known.__getitem__, default=None)
