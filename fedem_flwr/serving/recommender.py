"""Recommendations from a finished run, in Python.

from fedem_flwr import Recommender
recommender = Recommender.load("runs/my-run")
recommender.recommend(["1193", "661", "914"], top=10)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.errors import InputError, suggest
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.serving.model import BestItems, CpuModel, best_items, best_of_histories
from fedem_flwr.text import visible

ItemId = str | int
_SHOWN = 10  # unknown ids named at most
_SUGGESTED_FROM = 5000  # ids that are compared with an unknown one


class Recommendation(NamedTuple):
    """An item's id in the data set, and its score: comparable within one list only."""

    item: str
    score: float


class UnknownItemsWarning(UserWarning):
    """A history holds items that the run has never met; the others are used."""


class Recommender:
    """The model that a finished run serves.

    It never changes after `load`, so several threads may share it.

    Args:
        model: an opened run; `Recommender.load` opens one.
    """

    def __init__(self, model: CpuModel) -> None:
        self._model = model
        self._items: list[str] = [str(item) for item in model.run.split.item_ids]
        self._codes = {item: code for code, item in enumerate(self._items)}
        with torch.inference_mode():
            self._components = model.components()  # computes the table's Gram matrix, once
            self._scored = model.scored(self._components)

    @classmethod
    def load(cls, run_dir: str | PathLike[str], *, trust: bool = False) -> Recommender:
        """Open a run directory. The best round by validation is served where clients keep nothing, else the last.

        Args:
            trust: let it import the code that it names, though this account has not made it here.

        Raises:
            InputError: no run, no checkpoint yet, or a damaged one.
        """
        return cls(CpuModel.of(RunDirectory(Path(run_dir)).open(), trusted=trust))

    @property
    def items(self) -> list[str]:
        """(m,) ids of the catalogue."""
        return list(self._items)

    @property
    def method(self) -> str:
        """Name of the run's method."""
        return self._model.run.config.method.name

    @property
    def round(self) -> int:
        """The round whose model is served."""
        return self._model.point.round

    def recommend(self, history: Iterable[ItemId], top: int = 10, exclude_seen: bool = True) -> list[Recommendation]:
        """The best items for somebody with this history, who need not have been in training.

        Args:
            history: item ids as in the data set, oldest first. A repeated item counts once, at its newest place.
            top: how many; fewer where the catalogue has no more.
            exclude_seen: leave out the items of the history.

        Raises:
            InputError: empty, no item of it is known, nothing is left to recommend, or the method cannot serve unseen
                users.

        Warns:
            UnknownItemsWarning: naming the ids that were left out.
        """
        return self._recommend([history], ["the history"], top, exclude_seen)[0]

    def recommend_many(
        self,
        histories: Iterable[Iterable[ItemId]],
        top: int = 10,
        exclude_seen: bool = True,
        labels: Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """The same for many histories at once; faster than one by one.

        Args:
            labels: what errors call the histories; by default "history 0", …

        Raises:
            InputError: as `recommend`, for the first history that is not right.
        """
        given = list(histories)
        return self._recommend(given, labels or [f"history {at}" for at in range(len(given))], top, exclude_seen)

    def recommend_user(self, user: ItemId, top: int = 10, exclude_seen: bool = True) -> list[Recommendation]:
        """The best items for a user of the run, from all its interactions, the held-out ones included.

        Methods that keep a trained embedding for each user score with that instead.

        Raises:
            InputError: the data set has no such user, or nothing is left to recommend.
        """
        _check_top(top)
        code = self._model.user(str(user))
        seen = _newest_places(self._model.interactions(code))
        self._check_left(seen, f"user '{user}'", exclude_seen)
        try:
            with torch.inference_mode():
                if self._components:
                    return self._named(self._best([seen], top, exclude_seen))[0]
                scores = self._model.trained_user(code).cpu()
                return self._named(best_items(scores, [seen] if exclude_seen else None, top))[0]
        except FloatingPointError as error:
            raise self._insane(error) from None

    def similar_items(self, item: ItemId, top: int = 10) -> list[Recommendation]:
        """The items whose rows of the item table point the same way; scores are cosines.

        Raises:
            InputError: unknown item, or a method without one table for all users.
        """
        _check_top(top)
        code = self._codes.get(str(item))
        if code is None:
            raise InputError(f"item '{item}' is not in {self._dataset}{self._suggestion(str(item))}")
        with torch.inference_mode():
            cosine = (self._directions @ self._directions[code]).unsqueeze(0)  # (1, m)
            return self._named(best_items(cosine, [np.array([code])], top))[0]

    def unknown(self, history: Iterable[ItemId]) -> list[str]:
        """The ids of a history that are not in the catalogue, each once."""
        return [item for item in dict.fromkeys(map(str, history)) if item not in self._codes]

    def _recommend(
        self, histories: Sequence[Iterable[ItemId]], labels: Sequence[str], top: int, exclude_seen: bool
    ) -> list[list[Recommendation]]:
        _check_top(top)
        if self._scored is None:
            raise InputError(
                f"method '{self.method}' keeps a trained table for each user, so it cannot serve a user that was never "
                "in training: use --user, or a run of fedials"
            )
        read = [self._read(history, label, exclude_seen) for history, label in zip(histories, labels, strict=True)]
        unknown = list(dict.fromkeys(item for _, left_out in read for item in left_out))
        if unknown:
            message = f"left out, as {self._dataset} has no such items: {_listed(unknown)}"
            warnings.warn(message, UnknownItemsWarning, stacklevel=3)
        try:
            with torch.inference_mode():
                return self._named(self._best([codes for codes, _ in read], top, exclude_seen))
        except FloatingPointError as error:
            raise self._insane(error) from None

    def _read(self, history: Iterable[ItemId], label: str, exclude_seen: bool) -> tuple[IntArray, list[str]]:
        """Codes of the known items, each once, and the unknown ids."""
        if isinstance(history, str | bytes):
            raise InputError(f"{label} is one text: give a list of item ids")
        given = [str(item) for item in history]
        if not given:
            raise InputError(f"{label} is empty: give at least one item id, oldest first")
        unknown = self.unknown(given)
        codes = np.array([self._codes[item] for item in given if item in self._codes], np.int64)
        if not len(codes):
            raise InputError(
                f"{label} holds no item of {self._dataset}: {_listed(unknown)}{self._suggestion(unknown[0])}"
            )
        codes = _newest_places(codes)
        self._check_left(codes, label, exclude_seen)
        return codes, unknown

    def _check_left(self, seen: IntArray, label: str, exclude_seen: bool) -> None:
        if exclude_seen and len(seen) == len(self._items):
            raise InputError(
                f"{label} holds all {len(seen)} items of {self._dataset}, nothing is left to recommend: "
                "include what was seen (--include-seen)"
            )

    def _best(self, histories: Sequence[IntArray], top: int, exclude_seen: bool) -> list[BestItems]:
        scored = self._scored
        assert scored is not None
        return best_of_histories(scored, histories, len(self._items), top, unseen=exclude_seen)

    def _named(self, found: Iterable[BestItems]) -> list[list[Recommendation]]:
        return [
            [
                Recommendation(self._items[code], score)
                for code, score in zip(*map(np.ndarray.tolist, best), strict=True)
            ]
            for best in found
        ]

    def _insane(self, error: FloatingPointError) -> InputError:
        return InputError(f"{self._model.place} cannot be used: {error}; resume the run, or start it again")

    @property
    def _dataset(self) -> str:
        return self._model.run.split.dataset

    def _suggestion(self, item: str) -> str:
        return suggest(item, self._items[:_SUGGESTED_FROM])

    @cached_property
    def _directions(self) -> Tensor:
        """(m, d) rows of the item table, of length 1."""
        table: Tensor = self._model.table()
        lengths: Tensor = table.norm(dim=1, keepdim=True)
        return table / lengths.clamp(min=1e-12)


def _newest_places(codes: IntArray) -> IntArray:
    """Each item once, where it is newest."""
    return np.array(list(dict.fromkeys(codes[::-1].tolist()))[::-1], np.int64)


def _check_top(top: int) -> None:
    if top < 1:
        raise InputError(f"top = {top}: ask for at least one item")


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(f"'{visible(item)}'" for item in ids[:_SHOWN]) + more
