"""Elastic merging as a plug-in: methods that know nothing of it pass the cells with it, and learn with it."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.cells import CELLS
from conformance.methods import Subject
from conformance.numbers import TWIN_NEAR, close, one_by_one
from conformance.runs import Runs

EM = ("merge", "mode", "elastic")
RELEASED, HELD_OUT = ("merge", "schedule", "released"), ("merge", "gate_data", "heldout")
PFEDREC, FEDRAP, FEDNCF, GPFEDREC = "pfedrec", "fedrap", "fedncf", "gpfedrec"
PLUGGED = (Subject(PFEDREC, (EM,)), Subject("fedmf", (EM,)))
HERE = (  # in one process; other runtimes carry out the same rounds
    *("spread over nodes", "killed and resumed", "warm evaluation", "only what is declared", "nothing private"),
    *("bytes", "slow twin", "several tables", "contribution stages", "recommendations"),
)
VARIANTS = (
    Subject(PFEDREC, (EM, RELEASED)),
    Subject(FEDNCF, (("merge", "mode", "scalar"), RELEASED)),
    Subject(FEDRAP, (EM, RELEASED)),
    Subject(FEDNCF, (EM, HELD_OUT, ("merge", "hold_out", 4))),
    Subject("fedem", (HELD_OUT, ("merge", "hold_out", 7), ("local", "batch_size", 20))),
    Subject("fedem", (HELD_OUT, RELEASED, ("merge", "mode", "scalar"))),
    Subject("fedmf", (EM, ("local", "ridge", 0.01), ("gradients", "sharpness", 0.02))),
    Subject("test_hooks:PulledFedEM", (EM, RELEASED, ("aggregate", "weights", "eq13"))),
)


def names(subject: Any) -> str:
    return subject.short if isinstance(subject, Subject) else str(subject)


@pytest.mark.parametrize("subject", PLUGGED, ids=names)
@pytest.mark.parametrize("cell", HERE)
def test_a_plugged_method_passes(subject: Subject, cell: str, runs: Runs) -> None:
    CELLS[cell](subject, runs)


@pytest.mark.parametrize("subject", VARIANTS, ids=names)
def test_a_round_is_that_of_the_reference(subject: Subject, runs: Runs) -> None:
    """The first that merges."""
    whole = runs.whole(subject, 0)
    (sent,) = whole.crossings("train", 2, up=True)
    upload = one_by_one(whole, 2)
    close(upload, {name: sent.arrays[name] for name in upload}, TWIN_NEAR, "what goes up")


@pytest.mark.parametrize("name", [PFEDREC, FEDRAP, FEDNCF, GPFEDREC, "fedmf"])
def test_two_tastes_are_found(name: str, runs: Runs) -> None:
    CELLS["two tastes"](Subject(name, (EM,)), runs)


@pytest.mark.parametrize("subject", [*PLUGGED, Subject(GPFEDREC, (EM,))], ids=names)
def test_rho_is_logged_wherever_users_are_evaluated(subject: Subject, runs: Runs) -> None:
    """Also of users who are scored with their own table: it is of the merge that is to come."""
    done = runs.whole(subject, 0).done
    split = done.run.split
    for line in done.lines:
        assert 0 < line["rho"]["mean"] < 1 and sum(line["rho"]["histogram"]) == split.users * split.items
