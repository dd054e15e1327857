"""How many uploads of each of its users a node has let go, with which noise: what their ε is composed over.

Each upload has noise of its own, also in a round that is repeated after a kill, and each counts. It is counted before
it goes. A simulation has a ledger in each run; a networked node has one for all its runs, beside its secret.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.errors import FedemError
from fedem_flwr.files import private_folder, write_atomically
from fedem_flwr.privacy.accounting import Mechanism, composed_of

LEDGER_FILE, _UPLOADS = "released.json", "uploads"


Sent = dict[Mechanism, np.ndarray]
"""(k,) uploads of each user that have gone with some noise."""


@dataclass(frozen=True)
class Ledger:
    """Of one node.

    Attributes:
        path: its file. users: how many the node hosts. ldp: what uploads go through now.
    """

    path: Path
    users: int
    ldp: LdpConfig

    def sent(self) -> Sent:
        """What has gone.

        Raises:
            FedemError: the ledger is damaged, or of other users; then nothing may go.
        """
        found = _read(self.path) if self.path.exists() else {}
        if other := [len(counts) for counts in found.values() if len(counts) != self.users]:
            raise FedemError(f"{self.path} is of {other[0]} users, and this node hosts {self.users}: start again")
        return found

    def count(self, who: np.ndarray) -> None:
        """Write down one more upload of the users `who` (k'), by position, with the noise of now.

        Raises:
            FedemError: see `sent`; or it cannot be written.
        """
        found, now = self.sent(), Mechanism.of(self.ldp)
        found.setdefault(now, np.zeros(self.users, np.int64))[who] += 1
        told = [{"noise": one.noise, "ratio": one.ratio, _UPLOADS: x.tolist()} for one, x in found.items()]
        private_folder(self.path.parent)
        write_atomically(self.path, json.dumps(told), private=True)

    def exhausted(self, who: np.ndarray) -> np.ndarray:
        """Those of users `who`, by position, of whom another upload would pass `ldp.epsilon_limit`.

        Raises:
            FedemError: see `sent`; or the accountant is not installed.
        """
        limit = self.ldp.epsilon_limit
        if limit is None or not len(who):
            return who[:0]
        found = self.sent()
        now = Mechanism.of(self.ldp)
        found.setdefault(now, np.zeros(self.users, np.int64))
        rows, place = np.unique(np.stack([counts[who] for counts in found.values()], 1), axis=0, return_inverse=True)
        more = [{one: int(n) + (one == now) for one, n in zip(found, row, strict=True)} for row in rows]
        above = np.array([composed_of(one, self.ldp.delta)[0] > limit for one in more])
        return np.asarray(who[above[place.reshape(-1)]])


def most(run_dir: Path) -> int | None:
    """The most uploads that any user of a run has sent, as far as its nodes' ledgers lie here; None: none does."""
    return max((int(each.max(initial=0)) for each in _all(run_dir)), default=None)


def reached(run_dir: Path, most: int) -> tuple[int, int] | None:
    """How many users of a run have sent so many uploads, and of how many users, as far as ledgers lie here."""
    found = _all(run_dir)
    return (sum(int((each >= most).sum()) for each in found), sum(map(len, found))) if found else None


def _all(run_dir: Path) -> list[np.ndarray]:
    """Uploads of each user, of every ledger below a run's directory: with all noises, of which it has one."""
    return [np.sum([*_read(path).values()], axis=0) for path in sorted(run_dir.rglob(LEDGER_FILE))]


def _read(path: Path) -> Sent:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = {Mechanism(str(x["noise"]), float(x["ratio"])): np.array(x[_UPLOADS], np.int64) for x in told}
        if not found or any(x.ndim != 1 or (x < 0).any() or not one.ratio > 0 for one, x in found.items()):
            raise ValueError("it holds no counts")
        return found
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FedemError(
            f"{path}, what this run's users have spent, is damaged: {error}; start the run again"
        ) from None
