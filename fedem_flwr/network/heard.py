"""What a node remembers of its servers' messages: its challenges, and how far each run's numbers have come."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedem_flwr.errors import FedemError
from fedem_flwr.files import private_folder, unlinked_private

CHALLENGE: Final = 32  # digits
_RUNS: Final = 1000  # after which all is made anew: no older message is taken then, either


class Heard:
    """In memory, where the process lives from message to message, or in a file.

    Args:
        path: of the file; None: in memory. Who loses it makes new challenges up.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._told = path, _anew()

    def challenge(self, run_id: int) -> str:
        """What a run's server must sign for its messages to be taken: digits that nobody can know before."""
        with self._kept() as told:
            return hmac.new(bytes.fromhex(told["secret"]), str(run_id).encode(), hashlib.sha256).hexdigest()[:CHALLENGE]

    def take(self, run_id: int, number: object) -> bool:
        """Whether this number is larger than all before it in the run; then it is noted."""
        with self._kept() as told:
            numbers: dict[str, int] = told["numbers"]
            if not isinstance(number, int) or number <= numbers.get(str(run_id), 0):
                return False
            if str(run_id) not in numbers and len(numbers) >= _RUNS:
                told.update(_anew())
            told["numbers"][str(run_id)] = number
            return True

    @contextmanager
    def _kept(self) -> Iterator[dict[str, Any]]:
        if self._path is None:
            yield self._told
            return
        try:
            private_folder(self._path.parent)
            handle = unlinked_private(str(self._path), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise FedemError(f"cannot remember messages in {self._path}: {error.strerror}") from None
        with os.fdopen(handle, "r+", encoding="utf-8", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a SuperNode may start several processes
            found = file.read()
            told = _read(found)
            yield told
            made = json.dumps(told)
            if made != found:
                file.seek(0)
                file.write(made)
                file.truncate()


def _anew() -> dict[str, Any]:
    return {"secret": secrets.token_hex(32), "numbers": {}}


def _read(text: str) -> dict[str, Any]:
    """What the file holds; anew where it is new or damaged."""
    try:
        told = json.loads(text)
        bytes.fromhex(told["secret"])
        numbers = {str(run): int(number) for run, number in told["numbers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return _anew()
    return {"secret": told["secret"], "numbers": numbers}
