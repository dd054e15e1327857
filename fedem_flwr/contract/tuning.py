"""Settings that a run chooses on validation sums: devices evaluate a grid, the server takes the best row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.protocol.splits import Split

Row = Mapping[str, float]


@dataclass(frozen=True)
class Wanted:
    """What of a grid is asked for.

    Attributes:
        rows: numbers of the settings. who: positions of the users that they are tried on; None: everybody.
    """

    rows: Sequence[int]
    who: IntArray | None = None


@dataclass(frozen=True)
class Tuning:
    """One grid.

    Attributes:
        name: prefix of the devices' sums.
        rows: settings, in the order of the sums. first: those in force before one was chosen.
        due: whether the grid is evaluated with a round's model.
        measure: the devices' sums of what is wanted, see `evaluation.settings_grid`.
        idle: settings that messages carry while the model of so many rounds has no use for the others; None: it always
            has.
        compares: whether its rows are models of which one is to be left: then all are tried at once, in large runs too,
            and being tried makes no candidate of a round.
    """

    name: str
    rows: Sequence[Row]
    first: Row
    due: Callable[[int], bool]
    measure: Callable[[Device, Asked, Split, Wanted], Sums]
    idle: Callable[[int], Row | None] = lambda _: None
    compares: bool = False
