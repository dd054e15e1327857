"""Runs are shared by all cells of the suite."""

from __future__ import annotations

import pytest

from conformance.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Made when a cell first asks."""
    return Runs(tmp_path_factory.mktemp("conformance"))
