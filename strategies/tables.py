"""Methods whose server makes a table for every client: single uploads are kept until they are folded.

FedEM and its ablations: similarity-weighted sums of the uploaders' tables. A client's table waits until it trains next;
who has none waiting trains on with its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract import Gathered
from fedem_flwr.contract.asked import as_tensor
from fedem_flwr.contract.fields import Named
from fedem_flwr.models.rows import Rows, ragged

from .sums import SumsStrategy

_NOBODY = np.empty(0, dtype=np.int64)


class TablesStrategy(SumsStrategy):
    """One table a client; what else goes up is added up.

    The method's state holds, beside its own, `receivers` (r,) and for each part that goes up `(r, ...)` values that
    wait for them, in the receivers' order, ascending. What a fold gives is for the uploaders, or for receivers that it
    names.
    """

    TAKES_EACH = True

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        parts = self.method.parts()
        self.parts = {name: part for name, part in parts.items() if part.up == "each" and not part.touched}
        self.touched = {name: part for name, part in parts.items() if part.up == "each" and part.touched}
        nobody = {
            name: torch.empty((0, *((items, part.width) if part.axis == "item" else (part.width,))))
            for name, part in self.parts.items()
        }
        for name, part in self.touched.items():
            nobody |= Rows.none(0, part.width).named(name)
        self.kept = {**self.kept, "receivers": torch.empty(0, dtype=torch.int64), **nobody}

    def clear(self) -> None:
        """See the base."""
        super().clear()
        self._uploads: list[tuple[np.ndarray, Named]] = []
        self._served: list[np.ndarray] = []

    def uploaders(self, round_: int) -> np.ndarray:
        """Nobody uploads where nothing is aggregated."""
        return super().uploaders(round_) if self.method.federated else _NOBODY

    def download(self, users: np.ndarray) -> Named:
        """What waits for a node's users; all of it as it lies, where one node hosts everybody."""
        receivers = self.kept["receivers"].numpy()
        here = np.isin(receivers, users)
        waiting = {name: self.kept[name].numpy() for name in self.parts}
        if not here.all():
            receivers, waiting = receivers[here], {name: values[here] for name, values in waiting.items()}
        for name in self.touched:
            rows = Rows.of(self.kept, name)
            rows = rows if here.all() else rows.at(torch.from_numpy(np.flatnonzero(here)))
            waiting |= {key: values.numpy() for key, values in rows.named(name).items()}
        return {"receivers": receivers, **super().download(users), **waiting}

    def divided(self, arrays: Named) -> Named:
        """What waits for single users."""
        return {name: arrays[name] for name in ("receivers", *self.parts, *_lying(self.touched))}

    def problem(self, arrays: Named, uploaders: np.ndarray, participants: np.ndarray) -> str:
        """Also refuse values of users that were not asked for."""
        fault = super().problem(arrays, uploaders, participants)
        return fault or ("" if np.array_equal(arrays["users"], uploaders) else "holds tables of other users")

    def remaining(self, arrays: Named, uploaders: np.ndarray, spent: int) -> np.ndarray:
        """Those that the node names, where they are fewer by no more than it may leave out."""
        there = np.isin(uploaders, arrays.get("users", _NOBODY))
        return uploaders[there] if (~there).sum() <= spent else uploaders

    def receive(self, arrays: Named, participants: np.ndarray, trained: int) -> None:
        """Keep the uploads for `combine`; who trained has used up what was waiting.

        A node that holds back a sum beside users' own values has trained nobody: see `clients.method`.
        """
        super().receive(arrays, participants, trained)
        self._uploads.append((arrays["users"], arrays))
        self._served.append(participants)

    def gathered(self) -> Gathered:
        """The uploads, stacked."""
        stacked: dict[str, Tensor] = {}
        for name in (*self.parts, *_lying(self.touched)):
            values = [as_tensor(arrays[name]) for whose, arrays in self._uploads if len(whose)]
            stacked[name] = (values[0] if len(values) == 1 else torch.cat(values)) if values else self.kept[name][:0]
        whose = np.concatenate([_NOBODY, *(whose for whose, _ in self._uploads)])
        return replace(super().gathered(), each=stacked, uploaders=whose)

    def combine(self, round_: int) -> None:
        """What was made for the uploaders waits for them, beside what still waits for users who did not train."""
        before, whose = dict(self.kept), np.concatenate([_NOBODY, *(whose for whose, _ in self._uploads)])
        receivers = before["receivers"].numpy()
        waiting = ~np.isin(receivers, np.concatenate([_NOBODY, *self._served, whose]))
        failures = len(self.failures)
        super().combine(round_)
        if self.kept["receivers"] is not before["receivers"]:
            return  # the method has said for whom its values are
        nothing = {name: before[name][:0] for name in (*self.parts, *_lying(self.touched))}
        made = self.kept if len(whose) and len(self.failures) == failures else nothing
        first = next(iter((*self.parts, *_lying(self.touched))))
        users = np.concatenate([whose if len(made[first]) else _NOBODY, receivers[waiting]])
        order = np.argsort(users)
        self.kept = {
            **self.kept,
            "receivers": torch.from_numpy(users[order]),
            **self._ordered(made, before, waiting, order),
        }

    def _ordered(
        self, made: Mapping[str, Tensor], before: Mapping[str, Tensor], waiting: np.ndarray, order: np.ndarray
    ) -> dict[str, Tensor]:
        """New and waiting values in the receivers' order; not copied where they lie in it already."""
        found = {}
        for name in self.parts:
            values = torch.cat([made[name], before[name][torch.from_numpy(waiting)]]) if waiting.any() else made[name]
            in_order = bool((order == np.arange(len(order))).all())
            found[name] = values if in_order else values[torch.from_numpy(order)]
        left = torch.from_numpy(np.flatnonzero(waiting))
        for name in self.touched:
            rows = Rows.joined([Rows.of(made, name), Rows.of(before, name).at(left)]).at(torch.from_numpy(order))
            found |= rows.named(name)
        return found


def _lying(names: Iterable[str]) -> list[str]:
    """Names of the arrays in which rows of parts lie."""
    return [key for name in names for key in ragged(name)]
