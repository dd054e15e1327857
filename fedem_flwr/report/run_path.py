"""Where a run goes whose directory nobody has named."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from fedem_flwr.errors import InputError


def default_run_path(
    dataset: str, method: str, protocol: str, *, root: Path = Path("runs"), now: datetime | None = None
) -> Path:
    """Return ``root/<dataset>-<method>-<protocol>-<timestamp>``; of a data set's path only the stem."""
    parts = (Path(dataset).stem, method, protocol)
    words = [re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") or "unnamed" for part in parts]
    return root / "-".join([*words, (now or datetime.now()).strftime("%Y%m%d-%H%M%S")])


def new_run_path(dataset: str, method: str, protocol: str, *, root: Path = Path("runs")) -> Path:
    """Make the folder of that name, or, where another start of the same second has it, with a number behind it.

    Raises:
        InputError: no folder can be made there.
    """
    path = wanted = default_run_path(dataset, method, protocol, root=root)
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise InputError(
                f"cannot write the run directory {path}: {error.strerror}; give another with --out"
            ) from error
