"""Each fault, planted, is found by its cell: the suite can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients.method import MethodClient
from conformance.cells import CELLS
from conformance.methods import Subject
from conformance.planted import kind_hits
from conformance.runs import Runs
from conformance.secret import no_histories
from fedem_flwr.contract import Part
from fedem_flwr.engine.downloads import Download, alike
from fedem_flwr.evaluation import ranking
from strategies.declared import Declared


@pytest.mark.parametrize(
    ("method", "cell", "words"),
    [
        ("Leaks", "nothing private", "private part 'user' crossed"),
        ("Draws", "spread over nodes", "after round 1"),
        ("Draws", "killed and resumed", "server's state"),
        ("Forgets", "killed and resumed", "server's state"),
        ("Remembers", "warm evaluation", ""),
        ("Trusts", "bad uploads", "counts: "),
        ("Deaf", "contribution stages", "nothing was clipped"),
        ("Wrong", "gradients", "'user'"),
        ("Wrong", "slow twin", "is off by"),
        ("Blind", "gradients", ""),
        ("Blind", "two tastes", "HR@10"),
        ("Light", "bytes", "counted"),
    ],
)
def test_a_faulty_method_is_found(method: str, cell: str, words: str, runs: Runs) -> None:
    with pytest.raises(AssertionError, match=words):
        CELLS[cell](Subject(f"conformance.planted:{method}"), runs)


def hits_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """A number that is none counts as a hit."""
    patch.setattr(ranking, "full_ranks", kind_hits)
    patch.setattr(ranking, "sampled_ranks", kind_hits)


def one_table_for_all(patch: pytest.MonkeyPatch) -> None:
    """Of several tables everybody gets the first."""
    patch.setattr(Download, "of", lambda self, who: alike(self.values[0], len(who)))
    patch.setattr(Download, "rows", lambda self, who, items: self.values[0][items])


def talks(patch: pytest.MonkeyPatch) -> None:
    """A client says more than its method declares."""
    fit = MethodClient.fit

    def more(self: MethodClient, *message: Any) -> Any:
        arrays, samples, metrics = fit(self, *message)
        return arrays, samples, {**metrics, "first-item": float(self.host.split.test[0])}

    patch.setattr(MethodClient, "fit", more)


def believes(patch: pytest.MonkeyPatch) -> None:
    """Metric sums are taken as they come."""
    patch.setattr(Declared, "problem", lambda self, metrics, behind: "")


@pytest.mark.parametrize(
    ("plant", "cell"),
    [
        (hits_for_nothing, "no number is no hit"),
        (one_table_for_all, "several tables"),
        (talks, "only what is declared"),
        (believes, "bad metrics"),
    ],
)
def test_a_faulty_house_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], cell: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    apart = Runs(runs.path())  # its runs are of the faulty house
    apart.folder.mkdir()
    with pytest.raises(AssertionError):
        CELLS[cell](Subject("fedmf"), apart)


def test_a_history_is_found(runs: Runs) -> None:
    whole = runs.whole(Subject("fedmf"), 7)
    split = whole.done.run.split
    for secret in (split.train_items[split.train_offsets[4] :][:6], split.test):
        with pytest.raises(AssertionError, match="somebody's items crossed"):
            no_histories(whole, [np.arange(5), np.asarray(secret, np.int32)])


def test_parts_that_cannot_be_are_not_declared() -> None:
    with pytest.raises(ValueError, match="does not go up"):
        Part("user", 4, private=True, up="sum", mean="users")
    with pytest.raises(ValueError, match="is private"):
        Part("item", 4, group=True)
