"""Shards: each node's part of a split in a folder of its own, and beside them what everybody may know.

OUT/federation/federation.json, item_ids.npy     facts of the split and which users each shard holds
OUT/shards/node-0 ...                            a `Split` of one node's users; nothing of anybody else's
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import InputError
from fedem_flwr.protocol.files import replaced_folder
from fedem_flwr.protocol.split import SPLIT_SETTINGS, Split, SplitFacts

FEDERATION_FOLDER: Final = "federation"
SHARDS_FOLDER: Final = "shards"
_FACTS_FILE: Final = "federation.json"


@dataclass(frozen=True, eq=False)
class Federation:
    """What everybody may know of data that are spread over nodes.

    Attributes:
        facts: of the whole split. item_ids: (m,) labels of the catalogue.
        shards: the users of each shard: the first, and one past the last.
    """

    facts: SplitFacts
    item_ids: NDArray[Any]
    shards: tuple[tuple[int, int], ...]

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all."""
        facts = {name: getattr(self.facts, name) for name in SPLIT_SETTINGS}
        with replaced_folder(folder, public=True) as new:
            np.save(new / "item_ids.npy", self.item_ids, allow_pickle=False)
            (new / _FACTS_FILE).write_text(json.dumps({**facts, "shards": self.shards}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Federation:
        """Read the folder.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            record = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
            facts = SplitFacts(**{name: record[name] for name in SPLIT_SETTINGS})
            shards = tuple((int(first), int(end)) for first, end in record["shards"])
            item_ids = np.load(folder / "item_ids.npy", allow_pickle=False)
        except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{folder} describes no federation: {error}; make it with `fedem data shard`") from None
        if item_ids.shape != (facts.items,):
            raise InputError(f"{folder} has {item_ids.size} labels for {facts.items} items: make it again")
        starts, ends = [first for first, _ in shards], [end for _, end in shards]
        if any(first >= end for first, end in shards) or [*starts, facts.users] != [0, *ends]:
            raise InputError(f"{folder} has shards that do not add up to {facts.users} users: make it again")
        return cls(facts, item_ids, shards)


def user_range(users: int, nodes: int, node: int) -> tuple[int, int]:
    """The users of a node: the first, and one past the last; as many on each, fewer on the last, then none."""
    each = math.ceil(users / nodes)
    return min(users, node * each), min(users, (node + 1) * each)


def write_shards(split: Split, nodes: int, out: Path, on_shard: Callable[[], None] = lambda: None) -> Federation:
    """Cut a split into shards of consecutive users, a folder each, and describe them.

    Args:
        on_shard: called after each.

    Raises:
        InputError: more nodes than users.
    """
    if not 1 <= nodes <= split.users:
        raise InputError(f"{split.users} users cannot be spread over {nodes} nodes: choose 1 to {split.users}")
    ranges = [user_range(split.users, nodes, node) for node in range(nodes)]
    if ranges[-1][0] == ranges[-1][1]:
        full = sum(first < end for first, end in ranges)
        raise InputError(
            f"{split.users} users make {full} equal shards, not {nodes}: choose --nodes {full}, or a divisor"
        )
    for node, (first, end) in enumerate(ranges):
        shard = out / SHARDS_FOLDER / f"node-{node}"
        split.part(first, end).save(shard)
        on_shard()
    facts = SplitFacts(**{name: getattr(split, name) for name in SPLIT_SETTINGS})
    federation = Federation(facts, split.item_ids, tuple(ranges))
    federation.save(out / FEDERATION_FOLDER)
    return federation
