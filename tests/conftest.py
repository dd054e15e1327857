"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before anything imports Flower, which decides then

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets (their licences forbid shipping them); skips where there is none."""
    for candidate in (os.environ.get("FEDEM_DATA"), str(ROOT.parent / "shared" / "data")):
        if candidate and (Path(candidate) / "filmtrust" / "ratings.dat").is_file():
            return Path(candidate)
    pytest.skip("real data sets not found: set FEDEM_DATA to the folder that holds filmtrust/, ml-100k/, ...")
