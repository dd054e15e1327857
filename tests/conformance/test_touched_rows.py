"""Clients that keep trained rows only pass the cells of whole tables; beside a method whose sums they send, too."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.cells import CELLS
from conformance.methods import Subject
from conformance.runs import Runs

ROWS = ("merge", "table", "touched")
FEDEM = Subject("fedem", (ROWS, ("run", "participants", 0.6)))
PLUGGED = Subject("fedmf", (("merge", "mode", "elastic"), ROWS))
CASES = [
    *((FEDEM, cell) for cell in ("spread over nodes", "killed and resumed", "over a network", "recommendations")),
    *((FEDEM, cell) for cell in ("only what is declared", "nothing private", "bytes", "bad uploads")),
    *((PLUGGED, cell) for cell in ("spread over nodes", "killed and resumed", "nothing private")),
]


def names(value: Any) -> str:
    return value.short if isinstance(value, Subject) else str(value)


@pytest.mark.parametrize(("subject", "cell"), CASES, ids=names)
def test_rows_pass(subject: Subject, cell: str, runs: Runs) -> None:
    CELLS[cell](subject, runs)
