"""The server's side of the directional map: one round of sums over pairs of items, then a ridge regression."""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.engine.transitions import WINDOWS, directional_map
from fedem_flwr.errors import InputError
from strategies.uploads import Named, Spec

_OLDEST, _LAST = WINDOWS.decay_before ** (WINDOWS.before - 1), WINDOWS.decay_after ** (WINDOWS.after - 1)
_ROUNDED = 1 - 1e-5
_LEAST = {"pair-gram": _OLDEST**2 * _ROUNDED, "pair-cross": _OLDEST * _LAST * _ROUNDED}  # of one position that counts
MOST_ITEMS = 10_000  # the sums are two dense m × m tables: 1.6 GB at this size


class OrderMap:
    """Collects the sums of one round, and keeps the map.

    Args:
        items: m. entries: e, kept in a row. ridge: see `directional_map`.

    Raises:
        InputError: the catalogue is too large for dense sums.
    """

    def __init__(self, items: int, entries: int, ridge: float) -> None:
        if items > MOST_ITEMS:
            raise InputError(
                f"order.map needs two tables of items × items, and there are {items:,}: switch it off "
                f"(--set order.map=0), it is for at most {MOST_ITEMS:,}"
            )
        self.m, self.entries, self.ridge = items, min(entries, items), ridge
        self.items = torch.zeros((0, self.entries), dtype=torch.int32)  # (m, e), once it is known
        self.values = torch.zeros((0, self.entries))
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def expected(self) -> dict[str, Spec]:
        """Pairs of items with their sums."""
        return {"pairs": Spec((None,), "int64"), "pair-gram": Spec((None,)), "pair-cross": Spec((None,))}

    def problem(self, arrays: Named) -> str:
        """What is wrong with an upload of the right shapes; empty if nothing is."""
        pairs = arrays["pairs"]
        if len(pairs) and not (pairs[0] >= 0 and pairs[-1] < self.m**2 and bool((np.diff(pairs) > 0).all())):
            return f"'pairs' are not ascending codes of pairs of {self.m} items"
        for name in ("pair-gram", "pair-cross"):
            if len(arrays[name]) != len(pairs):
                return f"'{name}' has {len(arrays[name])} values for {len(pairs)} pairs"
            if float(arrays[name].min(initial=0.0)) < 0:
                return f"'{name}' has negative sums"
            if bool(((arrays[name] > 0) & (arrays[name] < _LEAST[name])).any()):
                return f"'{name}' has sums that are less than a single position's"
        rows, columns = np.divmod(pairs, self.m)
        known = rows[(rows == columns) & (arrays["pair-gram"] > 0)]
        if not np.isin(rows[arrays["pair-cross"] > 0], known).all():
            return "'pair-cross' has items that 'pair-gram' does not know"
        return ""

    def receive(self, arrays: Named) -> None:
        """Add a cohort's sums."""
        if self._sums is None:
            self._sums = torch.zeros(self.m**2, dtype=torch.float64), torch.zeros(self.m**2, dtype=torch.float64)
        where = torch.from_numpy(arrays["pairs"].copy())
        for total, name in zip(self._sums, ("pair-gram", "pair-cross"), strict=True):
            total[where] += torch.from_numpy(arrays[name].copy())

    def combine(self) -> str:
        """Make the map; the sums are let go.

        Returns:
            Why there is no map: sums that pass every check and are still not those of any histories. Empty if there is.
        """
        if self._sums is None:
            return "no node sent sums of pairs"
        gram, cross = (total.view(self.m, self.m) for total in self._sums)
        self._sums = None
        try:
            self.items, self.values = directional_map(gram, cross, self.ridge, self.entries)
        except FloatingPointError as error:
            return str(error)
        return ""

    def arrays(self) -> Named:
        """What goes down, and into checkpoints."""
        return {"map-items": self.items.numpy(), "map-values": self.values.numpy()}

    def restore(self, state: Named) -> None:
        """See `arrays`."""
        self.items, self.values = (torch.from_numpy(np.array(state[name])) for name in ("map-items", "map-values"))
