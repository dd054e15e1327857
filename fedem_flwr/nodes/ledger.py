"""How many uploads of each of its users a node has let go in a run: what their ε is composed over.

Each upload has noise of its own, also in a round that is repeated after a kill, and each counts. It is counted before
it goes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedem_flwr.errors import FedemError
from fedem_flwr.files import private_folder, write_atomically

LEDGER_FILE = "released.json"


def count(path: Path, users: int, who: np.ndarray) -> None:
    """Write down one more upload of the users `who` (k'), by position among so many.

    Raises:
        FedemError: the ledger is damaged, or cannot be written; then nothing may go.
    """
    found = _read(path) if path.exists() else np.zeros(users, np.int64)
    if len(found) != users:
        raise FedemError(f"{path} is of {len(found)} users, and this node hosts {users}: start the run again")
    found[who] += 1
    private_folder(path.parent)
    write_atomically(path, json.dumps(found.tolist()), private=True)


def most(run_dir: Path) -> int | None:
    """The most uploads that any user of a run has sent, as far as its nodes' ledgers lie here; None: none does."""
    found = [int(_read(path).max(initial=0)) for path in run_dir.rglob(LEDGER_FILE)]
    return max(found, default=None)


def _read(path: Path) -> np.ndarray:
    try:
        return np.array(json.loads(path.read_text(encoding="utf-8")), np.int64)
    except (OSError, ValueError, TypeError) as error:
        raise FedemError(
            f"{path}, what this run's users have spent, is damaged: {error}; start the run again"
        ) from None
