"""A package's method over a real network: server, SuperLink and nodes are processes, and find it on their path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from worlds import carry_out, figures, largest_difference

from conformance.installed import install, named
from conformance.methods import Subject
from conformance.runs import Runs

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.network
def test_a_method_of_ones_own_over_the_network(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [str(install(runs.path())), str(TESTS), str(TESTS.parent)]
    monkeypatch.syspath_prepend(places[0])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")]))
    subject = named(Subject("conformance.biased:Biased"))
    here = runs.whole(subject, 11).done
    there = carry_out(runs.path(), subject.config(run={"users_per_node": 11, "runtime": "network"}))
    assert there.run.nodes == 2 and there.outcome.failures == []
    assert largest_difference(here.server, there.server) == largest_difference(here.nodes, there.nodes) == 0
    assert [figures(line) for line in here.lines] == [figures(line) for line in there.lines]
