"""What a control will take, known before it is begun: one that would take too much is left out, and that is said."""

from __future__ import annotations

from dataclasses import dataclass

# Orders of magnitude, on two cores: the estimate is not to depend on what else the machine does.
_DENSE = 2e10  # multiply-adds a second of dense products and solutions
_SPARSE = 2e8  # of sparse ones, and numbers looked at to find the largest
_TABLES = 3  # square ones that a solution of EASE holds at a time


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        gigabytes: memory. minutes: time. tables: what takes it, in words.
    """

    gigabytes: float
    minutes: float
    tables: str


@dataclass(frozen=True)
class Limits:
    """What a control may take."""

    gigabytes: float = 3.0
    minutes: float = 10.0

    def objection(self, cost: Cost) -> str | None:
        """Why something that costs so much is left out; None: it is not."""
        if cost.gigabytes > self.gigabytes:
            over = f"evaluation.control_gb = {self.gigabytes:g}"
        elif cost.minutes > self.minutes:
            over = f"evaluation.control_minutes = {self.minutes:g}"
        else:
            return None
        return (
            f"{cost.tables} would take about {cost.gigabytes:.1f} GB and {cost.minutes:.0f} minutes, more than {over}"
        )


def of_ease(rows: int, solutions: int, looked_up: float, scorings: int) -> Cost:
    """EASE.

    Args:
        rows: of its square tables. solutions: how many ridges are tried.
        looked_up: items of all histories that settings are tried on. scorings: how often they are, for each ridge.
    """
    size = 8 if rows <= DOUBLE_UP_TO else 4
    work = solutions * (float(rows) ** 3 + scorings * looked_up * rows)
    return Cost(_TABLES * size * float(rows) ** 2 / 1e9, work / _DENSE / 60, f"its tables of {rows:,} × {rows:,}")


def of_neighbours(items: int, pairs: float, most: int, versions: int) -> Cost:
    """Item-based nearest neighbours.

    Args:
        items: m. pairs: of items in the same history, all histories together.
        most: neighbours kept of each item. versions: of the table.
    """
    work = pairs + versions * float(items) ** 2
    return Cost(
        versions * 8.0 * items * min(most, items) / 1e9, work / _SPARSE / 60, f"the neighbours of {items:,} items"
    )


DOUBLE_UP_TO = 4096  # rows up to which EASE is solved in float64; beyond, memory and time count for more
