"""Every method on Ray: a cell of the table whose processes want the machine for themselves."""

from __future__ import annotations

import pytest

from conformance.cells import CELLS
from conformance.methods import GUARDED, NARROW, SUBJECTS, Subject
from conformance.runs import Runs

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _on_two_machines(runs: Runs, raylets: str) -> None:
    runs.shared["raylets"] = raylets


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.short)
def test_the_same_on_ray(subject: Subject, runs: Runs) -> None:
    CELLS["on Ray"](subject, runs)


@pytest.mark.parametrize("subject", NARROW, ids=lambda subject: subject.short)
def test_narrow_messages_are_the_same_on_ray(subject: Subject, runs: Runs) -> None:
    """To the last digit: what comes is narrow on both sides, and rounded by the same draws."""
    CELLS["on Ray"](subject, runs)
    crossed = runs.whole(subject, 7).crossings("train", 2)
    assert {"int8", "float16"} & {values.dtype.name for one in crossed for values in one.arrays.values()}


def test_seeded_noise_is_the_same_on_ray(runs: Runs) -> None:
    CELLS["on Ray"](GUARDED, runs)
