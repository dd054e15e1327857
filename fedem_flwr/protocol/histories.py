"""What is on a device when its target is scored, where that is more than what the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedem_flwr.protocol.split import IntArray

NEW_ITEM: Final = -1
"""A target without a row before the instant: nothing that knows items by their number can rank it."""
NOT_ASKED: Final = -2
"""In a target's place: nothing is asked of this user."""
_PREFIX: Final = "history_"


@dataclass(frozen=True, kw_only=True, eq=False)
class Histories:
    """The rows before each user's target, whether before or after the instant; of items that are known at the instant.

    Attributes:
        part: whose targets the split holds; in the other part's place there are none.
        instant: what training saw is before it, in the data's own unit. target: which row from it on is asked for.
        offsets, items: CSR (k + 1,), (e,), oldest first, each item once a user; empty where nothing is asked.
        recent: (m,) rows of each item in the last stretch before the instant.
    """

    part: Literal["validation", "test"]
    instant: float
    target: str
    offsets: IntArray
    items: IntArray
    recent: IntArray

    def rows(self, first: int, end: int) -> Histories:
        """Those of the users `first` to `end` - 1, by position."""
        ends = self.offsets[first : end + 1]
        return replace(self, offsets=ends - ends[0], items=self.items[ends[0] : ends[-1]])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By the name of a file."""
        return {f"{_PREFIX}{name}": getattr(self, name) for name in ("offsets", "items", "recent")}

    @property
    def facts(self) -> dict[str, Any]:
        """What is no array."""
        return {"part": self.part, "instant": self.instant, "target": self.target}

    @classmethod
    def load(cls, directory: Path, facts: Any, mode: Literal["r"] | None) -> Histories:
        """Read them.

        Raises:
            OSError, ValueError, KeyError, TypeError: they are missing or damaged.
        """
        part, instant, target = facts["part"], float(facts["instant"]), str(facts["target"])
        if part not in ("validation", "test"):
            raise ValueError(f"targets of '{part}'")
        names = ("offsets", "items", "recent")
        found = {n: np.load(directory / f"{_PREFIX}{n}.npy", mmap_mode=mode, allow_pickle=False) for n in names}
        return cls(part=part, instant=instant, target=target, **found)

    def agree(self, users: int, items: int) -> bool:
        """Whether the sizes are those of so many users and items."""
        whole = self.offsets.shape == (users + 1,) and self.items.shape == (int(self.offsets[-1]),)
        return whole and self.recent.shape == (items,)
