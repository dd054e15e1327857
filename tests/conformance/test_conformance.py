"""Every method runs every cell; what cannot apply is listed with its reason, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conformance.cells import CELLS
from conformance.exceptions import EXCEPTIONS
from conformance.methods import LEFT_OUT, SUBJECTS, TEST_ONLY, Subject
from conformance.runs import Runs
from fedem_flwr.config.registry import names

ELSEWHERE = ("on Ray",)  # see test_on_ray.py


def table() -> Iterator[Any]:
    for subject in SUBJECTS:
        for cell in CELLS:
            if cell not in ELSEWHERE:
                yield pytest.param(subject, cell, id=f"{subject.short}-{cell}")


@pytest.mark.parametrize(("subject", "cell"), list(table()))
def test_cell(subject: Subject, cell: str, runs: Runs) -> None:
    if (subject.short, cell) not in EXCEPTIONS:
        CELLS[cell](subject, runs)
        return
    try:
        CELLS[cell](subject, runs)
    except AssertionError:
        return
    pytest.fail(f"{subject.short} passes the cell '{cell}': it is an exception no longer")


def test_exceptions_are_of_this_table_have_reasons_and_are_few() -> None:
    shorts = {subject.short for subject in SUBJECTS}
    assert all(method in shorts and cell in CELLS and cell not in ELSEWHERE for method, cell in EXCEPTIONS)
    assert all(len(reason) > 30 for reason in EXCEPTIONS.values())
    assert (len(SUBJECTS), len(CELLS), len(EXCEPTIONS)) == (27, 19, 31), "513 cells, of which 31 cannot apply"


def test_controls_that_are_no_federation_are_left_out_by_name() -> None:
    assert sorted(LEFT_OUT) == ["lightgcn-central", "mf-central", "mlp-central", "ncf-central", "neumf-central"]


def test_every_registered_method_is_here() -> None:
    found = {subject.name for subject in SUBJECTS}
    assert {"fedem", "fedmf", "fedials", "fedials-order", *TEST_ONLY} <= found
    assert {name for name in names("strategies") if name.startswith(("fed", "local"))} <= found
