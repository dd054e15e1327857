"""Which metrics a reply may hold: names that the round asks for, in blocks that are whole or absent, within bounds.

What a node sends beside them is dropped before it is kept, and counted. A block that is not whole, or a number that
cannot be, costs the node its reply. So nothing that a node names reaches a sum unless every node was asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedem_flwr.evaluation.cohort import MEANS, RHO_BINS, SAMPLE
from fedem_flwr.evaluation.ranking import PARTS
from fedem_flwr.messages.wire import number

_SANE = 1e18  # of a strategy's own metrics
_SANE_LOSS = 1e6  # of a sample, on average
_ROUNDING = 1e-9  # of sums of floats


@dataclass(frozen=True)
class Behind:
    """What is known of whoever sends metrics.

    Attributes:
        users: that the node hosts. interactions: of these. examples: most samples that they can have trained on.
        items: m.
    """

    users: int
    interactions: int
    examples: float
    items: int


@dataclass(frozen=True)
class Block:
    """Metrics that belong together.

    Attributes:
        prefix: of their names.
        counted: the name of the number that bounds the others. of_items: whether it counts pairs of user and item.
        sums: names of sums over what is counted, each of at most 1. whole: those of whole numbers, with their most in
            multiples of what is counted. free: those of interactions.
    """

    prefix: str
    counted: str = "users"
    of_items: bool = False
    sums: tuple[str, ...] = ()
    whole: Mapping[str, int] | None = None
    free: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of all its metrics."""
        return [self.prefix + name for name in (self.counted, *self.sums, *(self.whole or {}), *self.free)]

    def problem(self, metrics: Mapping[str, float], behind: Behind) -> str:
        """What is wrong with its numbers, in words; empty if nothing is, or if none is there."""
        present = [name for name in self.names if name in metrics]
        if not present:
            return ""
        if len(present) < len(self.names):
            missing = next(name for name in self.names if name not in metrics)
            return f"metrics that are not whole: '{present[0]}' without '{missing}'"
        counted = metrics[self.prefix + self.counted]
        most: dict[str, float] = {self.counted: behind.users * (behind.items if self.of_items else 1)}
        most |= {name: times * counted for name, times in (self.whole or {}).items()}
        whole = {*most, *self.free}
        most |= dict.fromkeys(self.sums, counted * (1 + _ROUNDING)) | dict.fromkeys(self.free, behind.interactions)
        for name, limit in most.items():
            value = metrics[self.prefix + name]
            if not 0 <= value <= limit or (name in whole and value != int(value)):
                return cannot_be(self.prefix + name, value, behind)
        return ""


def ranking(prefix: str = "", *, grouped: bool = False) -> Block:
    """What `evaluation.cohort.evaluate_cohort` gives."""
    return Block(prefix, sums=MEANS, whole={"nonfinite": len(PARTS)}, free=("interactions",) if grouped else ())


def _of_parts(block: Block, parts: Sequence[str]) -> Block:
    """The same of some held-out parts alone."""
    sums = tuple(name for name in block.sums if name not in MEANS or name.partition("/")[0] in parts)
    whole = {name: len(parts) if name == "nonfinite" else most for name, most in (block.whole or {}).items()}
    return replace(block, sums=sums, whole=whole or None)


def grid(name: str, rows: Iterable[int]) -> Block:
    """What `evaluation.settings_grid` gives of some rows."""
    return Block(f"{name}/", sums=tuple(f"{row:03d}" for row in rows))


RHO = Block("rho/", "count", True, ("total", "squares"), {f"bin-{at:02d}": 1 for at in range(RHO_BINS)})


@dataclass(frozen=True)
class Declared:
    """What may come in answer to a message.

    Attributes:
        blocks: whole or absent. groups: how many of the blocks, the last ones, are of groups of the first one's users.
        own: names of further sums, of a strategy of one's own.
    """

    blocks: tuple[Block, ...] = ()
    groups: int = 0
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *, evaluated: bool, groups: int = 0, own: Iterable[str] = (), sample: bool = False) -> Declared:
        """What every round may bring; with an evaluation also that, of all users, of a sample and of groups of them."""
        some = tuple(ranking(f"group-{group}/", grouped=True) for group in range(groups))
        apart = (ranking(SAMPLE),) if sample else ()
        return cls((ranking(), RHO, *apart, *some) if evaluated else (), groups, frozenset(own))

    def on(self, parts: Sequence[str]) -> Declared:
        """The same, evaluated on these held-out parts alone."""
        return (
            self if set(parts) == set(PARTS) else replace(self, blocks=tuple(_of_parts(b, parts) for b in self.blocks))
        )

    def with_grids(self, grids: Mapping[str, Iterable[int]]) -> Declared:
        """Also sums of grids, of these rows."""
        return replace(self, blocks=(*(grid(name, rows) for name, rows in grids.items()), *self.blocks))

    def read(self, record: Mapping[str, object]) -> tuple[dict[str, float], int]:
        """The declared numbers of a record, and how many other metrics it has."""
        names = [*_ALWAYS, *self.own, *(name for block in self.blocks for name in block.names)]
        values = ((name, record.get(name)) for name in names)
        found = {name: number(value) for name, value in values if isinstance(value, int | float)}
        return found, len(record) - len(found)

    def problem(self, metrics: Mapping[str, float], behind: Behind) -> str:
        """What is wrong with a node's numbers, in words; empty if they can be true."""
        if not metrics:
            return "a reply without metrics"
        if not all(math.isfinite(value) for value in metrics.values()):
            return "a metric that is not finite"
        for name in (*_ALWAYS, *self.own):
            value = metrics.get(name, 0.0)
            least, most = _range_of(name, metrics, behind)
            if not least <= value <= most or (name in _WHOLE and value != int(value)):
                return cannot_be(name, value, behind)
        for block in self.blocks:
            if problem := block.problem(metrics, behind):
                return problem
        parts = self.blocks[len(self.blocks) - self.groups :]
        inside = sum(metrics.get(f"{part.prefix}users", 0.0) for part in parts)
        return cannot_be("group-…/users", inside, behind) if inside > metrics.get("users", 0.0) else ""


SPENT = "spent"  # users asked for an upload who have sent as much as `ldp.epsilon_limit` lets them
_WHOLE = frozenset({"num-examples", "withheld", "metrics-withheld", "uncompiled", SPENT})
_ALWAYS = (*sorted(_WHOLE), "loss-total")


def _range_of(name: str, metrics: Mapping[str, float], behind: Behind) -> tuple[float, float]:
    """The least and the most of a metric that is in no block."""
    if name == "num-examples":
        return 0.0, behind.examples
    if name in _WHOLE:
        return 0.0, behind.users
    most = _SANE_LOSS * max(1.0, metrics.get("num-examples", 0.0)) if name == "loss-total" else _SANE
    return -most, most


def cannot_be(name: str, value: float, behind: Behind) -> str:
    """What is said of a number that no node with these users can have."""
    return f"a metric that cannot be: '{name}' is {value:.6g}, of {behind.users} users"
