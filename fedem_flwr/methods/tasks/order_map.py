"""The phase of the directional map: one round of sums over pairs of items, then a ridge regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Task, Upload, indexed
from fedem_flwr.contract.adding import DENSE
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.phases import NothingMade, Sender
from fedem_flwr.engine.sparse_map import SparseSums, sparse_map
from fedem_flwr.engine.transitions import WINDOWS, directional_map, pair_sums
from fedem_flwr.errors import InputError
from fedem_flwr.protocol.split import SplitFacts

_OLDEST, _LAST = WINDOWS.decay_before ** (WINDOWS.before - 1), WINDOWS.decay_after ** (WINDOWS.after - 1)
_ROUNDED = 1 - 1e-5
_LEAST = {"pair-gram": _OLDEST**2 * _ROUNDED, "pair-cross": _OLDEST * _LAST * _ROUNDED}  # of one position that counts
_BEFORE, _AFTER = 1 / (1 - WINDOWS.decay_before), 1 / (1 - WINDOWS.decay_after)  # x and y of one item, at most
_MOST = {"pair-gram": _BEFORE**2, "pair-cross": _BEFORE * _AFTER}
_TYPICAL_PAIRS = 20  # of a position: pairs with the items before it
_A_PAIR = 24  # bytes of its code and its sums on the server, and as many again while uploads are added
_ROOM = 4 << 30  # bytes of all sums
_SPARSE = 5_000  # items from which the dense solution takes many seconds
_TIMES = 4  # a sparse sum takes two to three times what one in a table does


def most_pairs(facts: SplitFacts) -> int:
    """How many pairs of items can have sums: all, or either order of each item with those of its window before it."""
    return min(facts.items**2, 2 * WINDOWS.before * facts.interactions)


def with_room(config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
    """The configuration, with sparse sums where they are smaller than dense ones.

    Args:
        given: dotted names of settings that were asked for, and stay.

    Raises:
        InputError: a map of many items, whose sums of pairs would take more than a server has.
    """
    pairs = most_pairs(facts)
    if config.order.map and config.order.rounds and facts.items**2 > DENSE and pairs * _A_PAIR > _ROOM:
        raise InputError(
            f"order.map = {config.order.map}: {facts.interactions:,} interactions with {facts.items:,} items can have "
            f"{pairs:,} pairs, whose sums take {pairs * _A_PAIR / 1e9:.0f} GB on the server and as much again while "
            "they are added; leave the map out with --set order.map=0"
        )
    if facts.items > _SPARSE and pairs * _TIMES < facts.items**2 and "order.map_sparse" not in given:
        return config.changed("order", map_sparse=True)
    return config


class OrderMap(Task):
    """Sums over pairs; the map, `map-items` and `map-values` (m, e).

    Args:
        items: m. entries: e, kept in a row. ridge: see `engine.transitions.directional_map`.
        sparse: whether sums are of the pairs that there are, and the map is `engine.sparse_map`'s.
    """

    least_items = 2  # one to predict from, one to predict

    def __init__(self, items: int, entries: int, ridge: float, *, sparse: bool = False) -> None:
        self.items, self.entries, self.ridge, self.sparse = items, min(entries, items), ridge, sparse

    def start(self) -> State:
        """No map."""
        none = torch.zeros((0, self.entries))
        return {"map-items": none.int(), "map-values": none}

    def fields(self) -> dict[str, Field]:
        """Pairs of items with their sums."""
        total = Field((None,), terms=1, least=0.0)
        return indexed("pairs", self.items**2, dtype="int64", sparse=self.sparse, pair_gram=total, pair_cross=total)

    def needs(self) -> Sequence[str]:
        """The table: every message of these rounds carries it."""
        return ["table"]

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See `engine.transitions.PairSums`."""
        sums = pair_sums(device.history, asked.who)
        gram, cross = sums.gram.astype(np.float32), sums.cross.astype(np.float32)
        return Upload({"pairs": sums.pairs, "pair-gram": gram, "pair-cross": cross}, len(asked.who))

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """Sums that are less than a single position's, or of items that nobody has."""
        for name, least in _LEAST.items():
            if bool(((arrays[name] > 0) & (arrays[name] < least)).any()):
                return f"'{name}' has sums that are less than a single position's"
        rows, columns = np.divmod(arrays["pairs"], self.items)
        known = rows[(rows == columns) & (arrays["pair-gram"] > 0)]
        if not np.isin(rows[arrays["pair-cross"] > 0], known).all():
            return "'pair-cross' has items that 'pair-gram' does not know"
        return ""

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """Sums that are more than so many positions give, of one and the same item."""
        for name, most in _MOST.items():
            limit = most * float(sender.samples.sum())
            if (size := float(arrays[name].max(initial=0.0))) > limit:
                return f"'{name}' has an entry of {size:.3g}, more than {limit:.3g}: these users have none such"
        return ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """Make the map.

        Raises:
            NothingMade: sums that pass every check and are still not those of any histories; the run goes on without.
        """
        if not gathered.trained:
            raise NothingMade("the run goes on without a map: no node sent sums of pairs")
        gram, cross = gathered.sums["pair-gram"], gathered.sums["pair-cross"]
        try:
            if gram.is_sparse:
                sums = SparseSums(self.items, *(x.numpy() for x in (gram.indices()[0], gram.values(), cross.values())))
                items, values = sparse_map(sums, self.ridge, self.entries)
            else:
                square = (self.items, self.items)
                items, values = directional_map(gram.view(square), cross.view(square), self.ridge, self.entries)
        except FloatingPointError as error:
            raise NothingMade(f"the run goes on without a map: {error}") from None
        return {**state, "map-items": items, "map-values": values}

    def typical_length(self, items: float) -> int:
        """See `contract.phases.Task`."""
        return round(items) * min(round(items), _TYPICAL_PAIRS)
