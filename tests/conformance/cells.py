"""The table's columns: what every method must pass. A cell raises AssertionError, in words, where a method does not."""

from __future__ import annotations

from collections.abc import Callable

from conformance import equal, guarded, numbers, refusals, secret, stages, useful
from conformance.methods import Subject
from conformance.runs import Runs

Cell = Callable[[Subject, Runs], None]

CELLS: dict[str, Cell] = {
    "spread over nodes": equal.spread,
    "killed and resumed": equal.resumed,
    "warm evaluation": equal.warm,
    "over a network": equal.networked,
    "on Ray": equal.on_ray,
    "only what is declared": secret.fields,
    "nothing private": secret.private,
    "bytes": secret.counted,
    "bad uploads": refusals.refused,
    "bad metrics": refusals.boasting,
    "slow twin": numbers.twin,
    "both back ends": numbers.back_ends,
    "gradients": numbers.gradients,
    "several tables": numbers.downloads,
    "contribution stages": stages.stages,
    "local privacy": guarded.guarded,
    "no number is no hit": useful.misses,
    "two tastes": useful.tastes,
    "recommendations": useful.served,
}
