"""Compiled functions trust the sizes that they are given; told to look at bounds, the compiler makes them look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bounds_program import ROOMS, WIDTHS


def test_networks_of_any_widths_stay_in_their_arrays() -> None:
    """Vectors and single numbers alike; and each array that is too small by one number is found to be."""
    program = Path(__file__).parent / "bounds_program.py"
    done = subprocess.run(
        [sys.executable, program], env={**os.environ, "NUMBA_BOUNDSCHECK": "1"}, capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["last"] == [False] * 4 and found["beyond"] == [True] * 4 and found["below"] == [True] * 3
    assert found["networks"] == [False] * len(WIDTHS)
    assert found["short"] == dict.fromkeys(ROOMS, True)
