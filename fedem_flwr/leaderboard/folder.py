"""A leaderboard's folder: what marks it, who works in it, and where things lie.

leaderboard.html .md .tex .json, leaderboard-PROTOCOL.csv, figures/     what is for others to see
runs/DATASET-PROTOCOL-METHOD-SEED-KEY/                                  the cells: run directories like any other
splits/, logs/                                                          the cells' data, and what they said
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import private_folder, quoted, unlinked_private, write_atomically
from fedem_flwr.locking import WRITABLE, Lock
from fedem_flwr.version import __version__

FORMAT = 1  # of the folder; raise it when what lies in it changes
MARK, RESULTS = "grid.json", "leaderboard.json"
DEFAULT_ROOT = Path("leaderboards")
_LOCK = ".lock"


@dataclass(frozen=True)
class Folder:
    """The places of a leaderboard's folder. Making the object touches nothing."""

    path: Path

    @property
    def runs(self) -> Path:
        """Of the cells."""
        return self.path / "runs"

    @property
    def splits(self) -> Path:
        """Of what the cells share."""
        return self.path / "splits"

    @property
    def logs(self) -> Path:
        """Of the cells' processes."""
        return self.path / "logs"

    @property
    def figures(self) -> Path:
        """Of the pictures."""
        return self.path / "figures"

    @contextmanager
    def held(self) -> Iterator[int]:
        """Make the folder, or take up one that is there, and keep others from it meanwhile.

        Yields:
            The open file that the lock is on. Cells inherit it, so that it holds until the last of them has ended,
            though their parent was killed.

        Raises:
            InputError: it holds something else, is of another version, is not writable, or is in use.
        """
        self.check()
        mend = "wait until it has ended, or give another folder with --out"
        with Lock.take(self.path / _LOCK, f"the leaderboard {self.path}", mend, WRITABLE) as lock:
            if not (self.path / MARK).exists():
                self.write(MARK, {"format": FORMAT, "version": __version__})
            _, (handle,) = lock.hand_on()
            yield handle

    def check(self) -> None:
        """Find out whether a leaderboard may be written there.

        Raises:
            InputError: it holds something else, or is of another version.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is no folder: give another with --out")
        there = {entry.name for entry in self.path.iterdir()} - {_LOCK} if self.path.is_dir() else set()
        if not there:
            return
        if MARK not in there:
            raise InputError(f"{self.path} holds something else than a leaderboard: give another folder with --out")
        try:
            mark = json.loads((self.path / MARK).read_text(encoding="utf-8"))
            found = mark["format"], mark["version"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self.path / MARK} is damaged: give another folder with --out") from None
        if found[0] != FORMAT:
            raise InputError(
                f"{self.path} was made by version {found[1]} (format {found[0]}, this one writes {FORMAT}): give "
                f"another folder with --out; its runs can go there (fedem compare {quoted(self.runs)}/* --out ...)"
            )

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder."""
        write_atomically(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def log_of(self, name: str) -> Path:
        """Where a cell's process says what it does."""
        private_folder(self.logs)
        return self.logs / f"{name}.log"

    def fresh_log(self, name: str) -> Path:
        """The same, emptied: what was said before is no reason of today's."""
        log = self.log_of(name)
        try:
            with open(log, "wb", opener=unlinked_private):
                pass
        except OSError as error:
            raise FedemError(f"cannot write {log}: {error.strerror}; free space, then say the same again") from error
        return log
