"""What goes down to nodes, to which of them, and how many bytes it takes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedem_flwr.config import Config
from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.evaluation.looking import LooksAtRounds
from fedem_flwr.evaluation.sample import sampled_users
from fedem_flwr.messages.narrow import Narrower, crossing, narrowed
from fedem_flwr.messages.uploads import size_of
from fedem_flwr.messages.wire import pack_arrays

from .roster import NodeRoster

_NOBODY = np.empty(0, dtype=np.int64)


class SendsDown(LooksAtRounds, NodeRoster):
    """Mixed into strategies whose clients are `clients.base.HostClient`s."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self._narrow = Narrower(config.messages.bits_down)

    @abstractmethod
    def download(self, users: np.ndarray) -> Named:
        """What a node with these users is sent, beside who trains and who uploads.

        Returns:
            Named arrays. For the clients here: `receivers` (r,) and `tables` (r, m, d); one table and no receivers is
            for everybody, no tables is nothing yet.
        """

    def divided(self, arrays: Named) -> Named:
        """Those of all users' download that are divided among them; the others go to each of them."""
        return arrays if len(arrays.get("receivers", _NOBODY)) else {}

    def training(self, arrays: Named) -> Named:
        """What of a download its receiver trains with; the rest is empty."""
        return arrays

    @abstractmethod
    def typical(self) -> dict[str, Field]:
        """What an average user's own upload holds, for the count of bytes; every length is set."""

    @abstractmethod
    def participants(self, round_: int) -> np.ndarray:
        """(p,) the users that train in a round, ascending."""

    @abstractmethod
    def uploaders(self, round_: int) -> np.ndarray:
        """(a,) the participants whose uploads are aggregated, ascending."""

    def scored(self, round_: int) -> np.ndarray:
        """(s,) users that evaluate what a round's message brings, ascending: the model of the round before."""
        if round_ <= 1 or not self.evaluates(round_ - 1):
            return _NOBODY
        some = None if self.everybody(round_ - 1) else sampled_users(self.config, self.users)
        return np.arange(self.users) if some is None else some

    def told(self, settings: Mapping[str, object], *, scores: bool) -> ConfigRecord:
        """A node's settings; one whose users are not in the sample that a round is evaluated on is not asked for it."""
        asks = {name for name in settings if name == "evaluate" or name.startswith("tune-")}
        without = {} if scores or not settings["evaluate"] else {n: 0 if n == "evaluate" else "" for n in asks}
        return ConfigRecord({**settings, **without})  # type: ignore[dict-item]

    def message(
        self, kind: str, node: int, settings: ConfigRecord, users: tuple[np.ndarray, np.ndarray], *, scores: bool = True
    ) -> Message:
        """A message to a node.

        Args:
            users: who trains and who uploads. scores: whether the node's users score with what it brings.
        """
        sent = self.download(self._nodes[node])
        arrays = self._narrow(sent if scores else self.training(sent))
        content = RecordDict(
            {"arrays": pack_arrays({"participants": users[0], "uploaders": users[1], **arrays}), "config": settings}
        )
        return Message(content, node, kind, group_id=str(settings["server-round"]))

    def _size_for_one(self, arrays: Named) -> float:
        """Bytes that a user, a node of its own, is sent of all users' download, on average."""
        divided = self.divided(arrays)
        each = size_of(self._narrow({name: values for name, values in arrays.items() if name not in divided}))
        waiting = len(divided.get("receivers", _NOBODY))
        one = {name: values[: max(1, round(len(values) / max(1, waiting)))] for name, values in divided.items()}
        names, values = size_of(narrowed(one, self._narrow.bits))
        together = values * waiting if self.config.messages.narrow else size_of(divided)[1]  # of unequal lengths, too
        return sum(each) + names + together / self.users

    def message_bytes(self, round_: int) -> tuple[float, float]:
        """Bytes up and down that a user's training messages take in a round if every user is a node.

        Means over all users, whether they train or not. Call it before the round's uploads are combined.
        """
        participants, uploads = self.participants(round_), len(self.uploaders(round_))
        names_up, values_up = size_of(crossing(self.typical(), self.config.messages.bits_up))
        scored = self.scored(round_)
        rest = len(np.setdiff1d(participants, scored)) if self.stateless else self.users - len(scored)
        down = float(np.empty(0, np.int64).itemsize * (len(participants) + uploads))  # who trains, and who uploads
        sent = self.download(np.arange(self.users))
        for receivers, arrays in ((len(scored), sent), (rest, self.training(sent))):
            down += receivers * (self._size_for_one(arrays) + len("participants" + "uploaders")) if receivers else 0
        reached = (len(scored) + rest) / self.users  # who only evaluates sends the names alone
        return reached * names_up + values_up * uploads / self.users, down / self.users
