"""What a node remembers of its answers: over which users it has sent sums, so that no two of them differ by too few.

    STATE/answered.json     sets of users, one bit a user, the newest last

The sum over some users, less the sum over all of them but one, is that one's own. Which numbers a server asks for does
not matter: counts hardly depend on the model, and a model that differs in its last bit is another model. So the memory
is of users alone, for all runs of the node and across its starts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedem_flwr.errors import FedemError
from fedem_flwr.files import private_folder, unlinked_private, write_atomically

ANSWERED_FILE = "answered.json"
MOST = 4096  # sets that are remembered, and
_MOST_BYTES = 1 << 22  # bytes that they take


class Answered:
    """The sets of users of one node over which it has sent sums.

    Args:
        path: of the file. users: k, those that the node hosts, from `first`.
        least: the fewest users that two sets may differ by, unless they are the same.
    """

    def __init__(self, path: Path, first: int, users: int, least: int) -> None:
        self._path, self._whose, self._least = path, [first, users], least
        self._width = (users + 7) // 8

    def admits(self, kind: int, members: np.ndarray) -> bool:
        """Whether a sum over some users may go up; if so, it is remembered from here on, also after a crash.

        Args:
            kind: sums of different kinds are not compared.
            members: (k',) positions of the users in the node.

        Raises:
            FedemError: it cannot be written down.
        """
        bits = np.zeros(self._whose[1], np.bool_)
        bits[members] = True
        asked = np.packbits(bits)
        with self._locked():  # Flower's own SuperNode answers in processes, and may start several
            sets = self._read()
            known = sets.get(kind, np.empty((0, self._width), np.uint8))
            apart = np.bitwise_count(known ^ asked).sum(1, dtype=np.int64)
            if bool((apart == 0).any()):
                return True
            if bool((apart < self._least).any()):
                return False
            most = max(1, min(MOST, _MOST_BYTES // max(1, self._width)))
            self._write({**sets, kind: np.concatenate([known, asked[None]])[-most:]})
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            private_folder(self._path.parent)
            handle = unlinked_private(str(self._path.with_suffix(".lock")), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise FedemError(f"cannot remember answers in {self._path}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> dict[int, np.ndarray]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            if record["users"] != self._whose:  # another shard: what was answered is of other users
                return {}
            return {int(kind): self._unpacked(rows) for kind, rows in record["sets"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FedemError(
                f"{self._path} is damaged ({error}): restore it; or delete it, and what this node has answered until "
                "now is forgotten"
            ) from None

    def _unpacked(self, rows: list[str]) -> np.ndarray:
        return np.frombuffer(bytes.fromhex("".join(rows)), np.uint8).reshape(-1, self._width)

    def _write(self, sets: Mapping[int, np.ndarray]) -> None:
        written = {str(kind): [row.tobytes().hex() for row in rows] for kind, rows in sets.items()}
        write_atomically(self._path, json.dumps({"users": self._whose, "sets": written}))
