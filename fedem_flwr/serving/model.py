"""Scores from the model that a finished run serves: of any history, or of the run's own users. On the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config.registry import client_of
from fedem_flwr.contract.asked import as_tensor
from fedem_flwr.contract.serving import newcomers_scorer, serves_newcomers
from fedem_flwr.engine.history import History
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.scorers import Component, HistoryScorer
from fedem_flwr.nodes.host import SPLIT_FOLDER, NodeHost
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import IntArray, offsets_of
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel

_CPU = torch.device("cpu")
_TABLES = ("table", "items", "item_table")  # whose rows are the catalogue's
_SUGGESTED_FROM = 5000  # names that are compared with a misspelt one


class BestItems(NamedTuple):
    """A user's best items: codes and scores, best first."""

    items: IntArray
    scores: np.ndarray


@dataclass
class _CpuHost(NodeHost):
    """A node for one user at a time: a message to another device costs more than it saves, or there is none here."""

    def device(self) -> torch.device:
        """The CPU, wherever the run was trained."""
        return _CPU


@dataclass
class CpuModel(ServedModel):
    """A run's model, opened on the CPU."""

    @classmethod
    def of(cls, directory: RunDirectory, *, trusted: bool = False) -> CpuModel:
        """Open a run.

        Args:
            trusted: see `runtime.consent.read_config`.

        Raises:
            InputError: its inputs or its checkpoint are missing or damaged.
        """
        run = PreparedRun.open(directory, trusted=trusted)
        if rules_of(run.facts.protocol).by_instant:  # what is served is what was trained for the test
            directory = RunDirectory(directory.path / SECOND)
            if not directory.holds_run():
                raise InputError(
                    f"{directory.path} is not there yet: the run's second training has not begun; continue it with "
                    "`fedem resume`"
                )
            run = PreparedRun.open(directory, trusted=trusted)
        if run.has_data:
            run.split.check(directory.path / SPLIT_FOLDER, negatives=False)
        try:
            opened = cls.open(replace(run, config=run.config.changed("run", device="cpu")))
        except KeyError as error:
            raise InputError(f"the checkpoint in {directory.path} is of another method: it lacks {error}") from None
        return cls(opened.run, opened.point, opened.strategy)

    def client(self, node: int) -> Any:
        """The client of a node, in this process."""
        host = _CpuHost(self.run.directory.path.resolve(), self.run.nodes, trains=False)
        return client_of(self.run.config.method.strategy, self.run.config.method.client)(host, node)

    @property
    def place(self) -> str:
        """The round and where it is, for messages."""
        return f"the model of round {self.point.round} in {self.run.directory.path}"

    def components(self) -> list[tuple[float, Component]]:
        """What scores any history, with weights; nothing where users keep private state.

        Raises:
            InputError: what the checkpoint holds is not sane.
        """
        client = self.client(0)
        make: Callable[..., list[tuple[float, Component]]] | None = getattr(client, "components", None)
        if make is None:
            return []
        arrays, settings = self.message(client.users)
        self._check(arrays)
        return make([arrays[name] for name in client.DOWNLOAD], settings)

    def scored(self, components: Sequence[tuple[float, Component]]) -> Callable[[History], Scorer] | None:
        """What scores any history: the components, or local training of private parts; None: nothing does.

        Args:
            components: as `components` gives them.
        """
        if components:
            return lambda history: HistoryScorer(history, _CPU, components)
        client = self.client(0)
        method = getattr(client, "method", None)
        if method is None or not serves_newcomers(method):
            return None
        arrays, settings = self.message(np.empty(0, np.int64))
        self._check(arrays)
        given = [arrays[name] for name in client.DOWNLOAD]
        return lambda history: newcomers_scorer(method, history, _CPU, lambda side: client.asked(side, given, settings))

    def table(self) -> Tensor:
        """(m, d) the one item table of all users.

        Raises:
            InputError: this method has none.
        """
        own: Callable[[], Tensor | None] | None = getattr(self.strategy, "table", None)
        model = self.strategy.download(np.arange(min(1, self.run.split.users))).get("item_table")  # of a stock strategy
        found = own() if own is not None else None if model is None else as_tensor(model)
        if found is None:
            raise InputError(
                f"method '{self.run.config.method.name}' has an item table for each user, not one for all: "
                "similar items need a run of fedials or fedmf"
            )
        self._check({"table": found.numpy()})
        return found.to(torch.float32)

    def user(self, name: str) -> int:
        """A user's code.

        Raises:
            InputError: the data set has no such user.
        """
        split = self.run.split
        found = np.flatnonzero(split.user_ids == name)
        if not len(found):
            known = split.user_ids[:_SUGGESTED_FROM].tolist()
            raise InputError(f"user '{name}' is not in {split.dataset}{suggest(name, known)}")
        return int(found[0])

    def interactions(self, user: int) -> IntArray:
        """All items of a user, oldest first; the held-out ones too, which a service knows by now."""
        split = self.run.split
        asked = split.asked(np.array([user]))
        known = (split.train_offsets, split.train_items) if asked is not None and not len(asked) else split.known()
        offsets, items = known
        held_out = np.concatenate([split.validation[[user]], split.test[[user]]])
        return np.concatenate([items[offsets[user] : offsets[user + 1]], held_out[held_out >= 0]]).astype(np.int64)

    def trained_user(self, user: int) -> Tensor:
        """(1, m) scores of a user by its private state."""
        node = user // math.ceil(self.run.split.users / self.run.nodes)
        client = self.client(node)
        arrays, settings = self.message(client.users)
        self._check(arrays)
        scorer = client.model(self.point.round, [arrays[name] for name in client.DOWNLOAD], settings)
        scores: Tensor = scorer.scores(client.positions(np.array([user])), "test")[0]
        return scores

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        items = self.run.split.items
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"'{name}' of {self.place} is not finite: resume the run, or start it again")
            if name in _TABLES and array.size and array.shape[-2] != items:
                raise InputError(f"'{name}' of {self.place} has {array.shape[-2]} rows for {items} items: start again")


def best_of_histories(
    scored: Callable[[History], Scorer], histories: Sequence[IntArray], items: int, top: int, *, unseen: bool
) -> list[BestItems]:
    """Each history's best items.

    Args:
        scored: what a model scores histories with.
        histories: item codes, oldest first, each once.
        items: m.
        unseen: leave out what is in the history.
    """
    values = np.concatenate(histories) if histories else np.empty(0, np.int64)
    offsets = offsets_of(np.array([len(history) for history in histories], np.int64))
    scorer = scored(History(np.arange(len(histories)), items, offsets, values))
    found = []
    for part in scorer.blocks():
        scores = scorer.scores(part, "test")[0]
        found += best_items(scores, [histories[at] for at in part.tolist()] if unseen else None, top)
    return found


def best_items(scores: Tensor, left_out: Sequence[IntArray] | None, top: int) -> list[BestItems]:
    """The best items of each row.

    Args:
        scores: (k, m); written to.
        left_out: k times the distinct items that may not be listed.

    Raises:
        FloatingPointError: a score is not finite.
    """
    users, items = scores.shape
    if not bool(torch.isfinite(scores).all()):
        raise FloatingPointError("a score is not finite")
    counts = [0] * users
    if left_out is not None:
        counts = [len(own) for own in left_out]
        rows = np.repeat(np.arange(users), counts)
        scores[torch.from_numpy(rows), torch.from_numpy(np.concatenate(left_out))] = -torch.inf
    best = scores.topk(min(top, items), dim=1)
    codes, values = best.indices.numpy(), best.values.numpy()
    return [BestItems(codes[row, : items - count], values[row, : items - count]) for row, count in enumerate(counts)]
