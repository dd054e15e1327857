"""Every method on Ray: a cell of the table whose processes want the machine for themselves."""

from __future__ import annotations

import pytest

from conformance.cells import CELLS
from conformance.methods import GUARDED, SUBJECTS, Subject
from conformance.runs import Runs


@pytest.mark.ray
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.short)
def test_the_same_on_ray(subject: Subject, runs: Runs) -> None:
    CELLS["on Ray"](subject, runs)


@pytest.mark.ray
def test_seeded_noise_is_the_same_on_ray(runs: Runs) -> None:
    CELLS["on Ray"](GUARDED, runs)
